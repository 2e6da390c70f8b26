"""A server on this machine that speaks the OpenAI chat-completions protocol; what it answers is a function.

`with JudgeServer(answer) as server:` calls `answer(server, messages)` for each request that asks about a pair. It gives
the model's words, or an HTTP answer as it stands (`Raw`). `server.seen` holds each request's headers and body.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.support.local_server import LocalServer

Messages = list[dict[str, str]]


class Raw(NamedTuple):
    """An answer that is no chat completion."""

    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] = MappingProxyType({})


class Request(NamedTuple):
    """What was asked."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class JudgeServer(LocalServer):
    """The server; `url` is its base URL."""

    def __init__(self, answer: Callable[[JudgeServer, Messages], str | Raw]) -> None:
        super().__init__(Handler)
        self.reply = answer
        self.seen: list[Request] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(Request(self.path, dict(self.headers), body))
        if self.path != "/v1/chat/completions":
            self.send(Raw(404, b'{"error": {"message": "no such path"}}'))
            return
        answer = self.server.reply(self.server, body["messages"])
        self.send(answer if isinstance(answer, Raw) else completion(answer, body))

    def send(self, answer: Raw) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


def completion(text: str, body: dict[str, Any]) -> Raw:
    """The words as a chat completion; it is cut at `max_tokens` words, and a token is a word."""
    words = text.split(" ")
    limit = body["max_tokens"]
    usage = {"prompt_tokens": sum(len(message["content"].split()) for message in body["messages"]),
             "completion_tokens": min(len(words), limit)}  # fmt: skip
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " ".join(words[:limit])},
        "finish_reason": "length" if len(words) > limit else "stop",
    }
    answer = {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
    return Raw(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})


def parts(messages: Messages) -> dict[str, str]:
    """What stands between the marks of a question: `conversation`, `reply A` and `reply B`."""
    marked = re.findall(r"\[(\w+) ([\w ]+) begins\]\n(.*?)\n\[\1 \2 ends\]", messages[1]["content"], re.DOTALL)
    return {name: text for _, name, text in marked}


def prefer_longer(server: JudgeServer, messages: Messages) -> str:
    """A judge that likes the longer reply."""
    shown = parts(messages)
    gap = len(shown["reply A"]) - len(shown["reply B"])
    return "A" if gap > 0 else "B" if gap < 0 else "TIE"
