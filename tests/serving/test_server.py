"""What clients of a served policy get, those of OpenAI's library too, and what hostile ones do not get."""

import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx2
import openai
import pytest

from rlhf.config.project import RewardConfig
from rlhf.errors import UserError
from rlhf.models.tasks import LABEL
from rlhf.rewards.endpoint import load_judge
from rlhf.serving import server as server_module
from rlhf.serving.chat import chat
from rlhf.serving.endpoint import EndpointReplier
from rlhf.serving.listen import TOKEN
from rlhf.serving.questions import Question
from rlhf.serving.replies import NoRoom, Sampling, load_replier
from tests.support.runs import add_stage
from tests.support.served import FakeReplier, served

ADA = [{"role": "user", "content": "Hello Ada."}]
ASK = {"model": "it", "messages": ADA}


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("served") / "runs" / "tiny"
    add_stage(folder, "sft", tiny_llama)
    add_stage(folder, "dpo", tiny_llama, "sft")
    return folder


def started(*arguments, **environment):
    """`rlhf serve` as a process, and the base URL that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    line = process.stdout.readline()
    return process, re.search(r"http\S+", line)[0]


def client_of(url, key="none"):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def post(address, body, path="/v1/chat/completions", **headers):
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{address.url}{path}", content=content, headers=given)


def hello(prompt, sampling):
    return "Hello there, dear friend."


def test_openais_client_gets_what_the_terminal_shows_and_sigterm_ends_the_server(run_dir, root):
    page = (root / "docs/serving.md").read_text(encoding="utf-8")
    out = io.StringIO()
    chat(run_dir / "dpo", lines=io.StringIO("Hello Ada.\n"), out=out, temperature=0, max_new_tokens=24)
    process, url = started(run_dir)
    try:
        client = client_of(url)
        (model,) = client.models.list().data
        assert model.id == client.models.retrieve(model.id).id == "tiny:dpo"
        asked = {"model": model.id, "messages": ADA, "temperature": 0, "max_tokens": 24}
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert "".join(letter for letter in text if letter.isprintable() or letter in "\n\t") == out.getvalue()[:-1]
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == text
        assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason
        assert whole.usage == chunks[-1].usage
        assert whole.system_fingerprint == load_replier(run_dir, "dpo").artifact
        for language, shown in re.findall(r"^```(python|bash) (?:client|curl)\n(.*?)^```", page, re.M | re.S):
            shown = shown.replace("http://127.0.0.1:8000/v1", url).replace("quickstart:dpo", "tiny:dpo")
            command = [sys.executable, "-c"] if language == "python" else ["bash", "-c"]
            done = subprocess.run([*command, shown], capture_output=True, text=True, check=True)
            assert done.stdout if language == "python" else json.loads(done.stdout)["choices"]
        again = EndpointReplier(url).stream("Hello Ada.", Sampling(0.0, 24))
        assert again.text() == text
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "Traceback" not in errors


def refused(*arguments, before="pass"):
    """The one line of `rlhf serve` that cannot."""
    code = f"import sys; {before}; sys.argv[0] = 'rlhf'; from rlhf.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


def test_what_cannot_be_served_is_a_line(run_dir, tiny_bert, tmp_path):
    assert "pip install uvicorn (or rlhf-pipeline[serve])" in refused(run_dir, before="sys.modules['uvicorn'] = None")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1, port {port}" in refused(run_dir, "--port", port)
    assert "no stage 'ppp'" in refused(f"{run_dir}:ppp")
    add_stage(tmp_path / "bert", "sft", tiny_bert, task=LABEL, labels=2, adapter=False)
    assert "cannot write replies" in refused(f"{tmp_path / 'bert'}:sft", "--port", 0)


SLOW = """
import signal
from rlhf.serving.listen import open_address, serve
from rlhf.serving.server import application
from tests.support.served import FakeReplier

opened, address = open_address("127.0.0.1", 0)
print(address.url, flush=True)
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
serve(application(FakeReplier(lambda *_: "word " * 10000, 0.02), "it", address), opened)
"""


def test_a_server_ends_while_a_reply_streams(root):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    url = process.stdout.readline().strip()
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        _, errors = process.communicate(timeout=100)
    assert time.monotonic() - begun < 60  # about two seconds on a free machine; the reply would take 200
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_a_judge_of_a_project_may_be_a_served_policy(tmp_path):
    with served(FakeReplier(lambda prompt, sampling: "The first is longer.\nA"), "judge") as address:
        judge = load_judge("ours", RewardConfig(endpoint=f"{address.url}/v1", judge_model="judge"), tmp_path)
        judge.check()
        assert judge.prefer(["Hi"], ["Hello"], ["Bye"]) == [0.5]  # it likes whatever is shown first
        assert judge.report()["first_shown"] == 2


def test_what_was_asked_for_reaches_the_policy():
    seen = []

    def answer(prompt, sampling):
        seen.append(sampling)
        return "Yes."

    replier = FakeReplier(answer)
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "Ada."}]
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Hello.", "refusal": None, "tool_calls": None},
        *ADA,
    ]
    with served(replier) as address:
        client = client_of(f"{address.url}/v1")
        more = {"temperature": 0.5, "max_completion_tokens": 9, "seed": -3, "stop": ["END"], "n": 1, "top_p": 1.0}
        reply = client.chat.completions.create(model="it", messages=messages, user="ada", **more)
        client.chat.completions.create(**ASK, stop="x")
        client.chat.completions.create(**ASK)
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 1, 8)
    assert [turn["role"] for turn in replier.prompts[0]] == ["system", "user", "assistant", "user"]
    assert replier.prompts[0][1]["content"] == "Hello Ada."
    assert seen[0] == Sampling(0.5, 9, -3, ("END",))
    assert seen[1].stop_strings == ("x",)
    assert (seen[1].temperature, seen[1].max_new_tokens) == (1.0, 256)
    assert seen[1].seed != seen[2].seed


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user\nsystem", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "role2": "system"}]}, "messages.0.role2"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
        ({"messages": [*ADA, {"role": "assistant", "content": "Yes,"}]}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ""}, "stop.0"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["x", 5]}, "stop.1"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": {"x": 1}}, "stop"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"top_p": 0.9}, "top_p"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temprature": 0}, "temprature"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_not_served_is_refused_and_named(fake, change, param):
    response = post(fake, {**ASK, **change})
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert param is None or error["param"] == param


@pytest.fixture(scope="module")
def fake():
    with served(FakeReplier(hello)) as address:
        yield address


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "it", "messages": [{"role": "user", "content": "\\ud800"}]}',
     b"[" * 100_000, b'{"model": NaN}', b'{"seed": ' + b"9" * 5000 + b"}", b'{"' + b"x" * 9999 + b'": 1}'],
)  # fmt: skip
def test_broken_json_is_a_line(fake, body):
    response = post(fake, body)
    assert response.status_code == 400
    assert len(response.json()["error"]["message"]) < 400


ODD = [
    None, True, 0, -1, 1.5, 1e308, 1 << 63, 10**30, "", "\x00", "\u202e", "é" * 300, [], {}, [[]], {"a": {}}, ["x"],
    "user", [{"type": "text", "text": "x"}], [{"role": "user", "content": "x"}], {"include_usage": True},
]  # fmt: skip


def test_random_requests_are_answered_or_refused(fake):
    draw = random.Random(5)
    names, statuses = list(Question.model_fields), Counter()
    with httpx2.Client(headers={"Content-Type": "application/json"}) as client:
        for _ in range(300):
            body = {**ASK, **{draw.choice(names): draw.choice(ODD) for _ in range(draw.randrange(4))}}
            content = bytearray(json.dumps(body).encode())
            if draw.random() < 0.2:
                content[draw.randrange(len(content))] = draw.randrange(256)
            response = client.post(f"{fake.url}/v1/chat/completions", content=bytes(content))
            assert "server_error" not in response.text, content
            statuses[response.status_code] += 1
    assert set(statuses) <= {200, 400, 404}
    assert min(statuses[200], statuses[400]) > 30


@pytest.mark.parametrize(
    "name",
    ["other", "../../etc/passwd", "/etc/passwd", "it\n", "", "user/model", "<script>alert(1)</script>", "it/../it"],
)
def test_a_model_is_a_name_and_no_path(fake, name):
    response = post(fake, {**ASK, "model": name})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_other_paths_methods_and_types(fake):
    assert httpx2.get(f"{fake.url}/health").json() == {"status": "ok"}
    assert httpx2.get(f"{fake.url}/v1/models/..%2f..%2fetc%2fpasswd").status_code == 404
    assert httpx2.get(f"{fake.url}/v1/chat/completions").status_code == 405
    assert httpx2.get(f"{fake.url}/").json()["error"]["type"] == "invalid_request_error"
    assert post(fake, ASK, Content_Type="text/plain").status_code == 415


def test_pages_of_others_and_other_hosts_are_refused(fake):
    assert post(fake, ASK, Origin="https://evil.example").status_code == 403
    assert post(fake, ASK, Host=f"evil.example:{fake.port}").status_code == 421
    assert post(fake, ASK).status_code == 200


def test_script_in_a_prompt_stays_text(tmp_path):
    script = "<script>alert(1)</script>"
    with served(FakeReplier(lambda prompt, sampling: prompt[-1]["content"])) as address:
        response = post(address, {**ASK, "messages": [{"role": "user", "content": script}]})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["choices"][0]["message"]["content"] == script


def test_ten_megabytes_are_refused_before_they_are_read(fake):
    big = {**ASK, "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    assert post(fake, big).status_code == 413
    parts = (b"x" * 65536 for _ in range(160))
    chunked = httpx2.post(
        f"{fake.url}/v1/chat/completions", content=parts, headers={"Content-Type": "application/json"}
    )
    assert chunked.status_code == 413


def test_beyond_this_machine_a_token_is_required():
    with served(FakeReplier(hello), host="0.0.0.0") as address:
        url = f"{address.url}/v1"
        with pytest.raises(openai.AuthenticationError):
            client_of(url).models.list()
        assert client_of(url, address.token).models.list().data
        assert httpx2.get(f"{address.url}/health").status_code == 200
        with pytest.raises(UserError, match="it wants a key") as refused:
            EndpointReplier(url)
        assert address.token not in str(refused.value)


def test_a_client_that_leaves_stops_its_reply():
    replier = FakeReplier(lambda *_: "word " * 10000, 0.01)
    with served(replier) as address:
        with httpx2.stream("POST", f"{address.url}/v1/chat/completions", json={**ASK, "stream": True}) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(6)][-1] == ""
        assert replier.stopped.wait(60)
        connection = http.client.HTTPConnection("127.0.0.1", address.port)
        connection.request("POST", "/v1/chat/completions", json.dumps(ASK), {"Content-Type": "application/json"})
        while len(replier.prompts) < 2:
            time.sleep(0.01)
        connection.sock.shutdown(socket.SHUT_RDWR)  # a reply in one piece stops as well
        connection.close()
        assert replier.stopped.wait(60)


def test_a_policy_that_fails_says_so_and_no_more(caplog):
    def fails(prompt, sampling):
        raise RuntimeError("secret path")

    with served(FakeReplier(fails)) as address:
        response = post(address, ASK)
        assert response.status_code == 500
        assert "secret" not in response.text
        events = post(address, {**ASK, "stream": True}).text
        assert '"server_error"' in events
        assert "[DONE]" not in events
        assert "secret" not in events
    assert "secret path" in caplog.text


def test_a_prompt_without_room_has_the_code_that_clients_know():
    replier = FakeReplier(hello)

    def refuse(*_):
        raise NoRoom("300 tokens leave no room")

    replier.stream = refuse
    with served(replier) as address:
        error = post(address, ASK).json()["error"]
        assert error["code"] == "context_length_exceeded"


def test_too_many_replies_at_a_time_are_refused(monkeypatch):
    monkeypatch.setattr(server_module, "MOST_WAITING", 1)
    replier = FakeReplier(lambda *_: "word " * 1000, 0.01)
    with served(replier) as address:
        url = f"{address.url}/v1/chat/completions"
        with httpx2.stream("POST", url, json={**ASK, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            assert post(address, ASK).status_code == 429
        replier.stopped.wait(60)
        replier.answer = hello
        for _ in range(50):
            if post(address, ASK).status_code == 200:
                break
            threading.Event().wait(0.02)
        else:
            pytest.fail("a reply that has ended still counts")
