"""Talks with a stage in the terminal or through a pipe: for each line of input it writes a reply, token by token."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch

from rlhf.artifacts.rounds import run_name
from rlhf.data.records import Message, Text, Unusable
from rlhf.interrupts import Interrupted
from rlhf.policies.completion import row_seed
from rlhf.serving.replies import NoRoom, PolicyReplier, Sampling, load_replier

HELP = "/reset starts over, /system TEXT sets a system message and starts over, /quit (or Ctrl-D) leaves."


@dataclass
class Conversation:
    """A policy, and the messages so far."""

    replier: PolicyReplier
    messages: list[Message] = field(default_factory=list)

    def restart(self, system: str | None = None) -> None:
        """Forget all messages; begin with a system message, if one is given."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def reply(self, line: str, sampling: Sampling, out: TextIO) -> str:
        """Reply to a line, write the reply as it comes, and keep both messages.

        Args:
            line: What the user said.
            sampling: How the reply is sampled.
            out: Where it is written, without control characters.

        Raises:
            Unusable: There is no reply to such a line.
        """
        turns: list[Message] = [*self.messages, {"role": "user", "content": line}]
        prompt: Text = turns if self.replier.as_messages else line
        try:
            stream = self.replier.stream(prompt, sampling)
        except NoRoom as problem:
            raise NoRoom(problem.reason + ("; /reset starts over" if len(turns) > 1 else "")) from None
        written = ""
        for piece in stream:
            out.write(printable(piece if written.strip() else piece.lstrip()))
            out.flush()
            written += piece
        out.write("\n")
        out.flush()
        text = written.strip()
        if self.replier.as_messages:
            self.messages = [*turns, {"role": "assistant", "content": text}]
        return text


def chat(
    folder: Path,
    *,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int = 0,
    system: str | None = None,
    lines: TextIO | None = None,
    out: TextIO | None = None,
) -> None:
    """Write a reply to each line, until the input ends or `/quit`. Replies go to `out`, all else to stderr.

    Args:
        folder: A finished policy stage's folder.
        temperature: Sampling temperature; 0 is greedy.
        max_new_tokens: Longest reply, in tokens.
        seed: Seed of the sampling; the same lines with the same seed give the same replies.
        system: A system message to begin with.
        lines: Where lines come from; stdin if None.
        out: Where replies go; stdout if None.

    Raises:
        UserError: The stage cannot be loaded.
    """
    out = out or sys.stdout
    with torch.random.fork_rng():  # loading draws random numbers, too
        conversation = Conversation(load_replier(folder.parent, folder.name))
    conversation.restart(system)
    replier = conversation.replier
    form = "" if replier.as_messages else " It was trained on plain text: each line is a prompt of its own."
    _note(f"{run_name(folder.parent)}:{replier.name}.{form} {HELP}")
    for turn, line in enumerate(_lines(lines or sys.stdin)):
        if not line.strip():
            continue
        if line.strip().startswith("/"):
            if not _command(line.strip(), conversation):
                return
            continue
        try:
            conversation.reply(line, Sampling(temperature, max_new_tokens, row_seed(seed, turn)), out)
        except Unusable as problem:
            _note(problem.reason)
        except Interrupted:  # by SIGTERM, which ends the conversation
            raise
        except KeyboardInterrupt:
            _note("\nstopped; that turn is forgotten")


def _command(line: str, conversation: Conversation) -> bool:
    """Run a line that begins with `/`.

    Returns:
        Whether the conversation goes on.
    """
    name, _, argument = line.partition(" ")
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        conversation.restart()
        _note("a new conversation")
    elif name == "/system" and not conversation.replier.as_messages:
        _note("trained on plain text, the model knows no system message")
    elif name == "/system":
        conversation.restart(argument.strip())
        _note("a new conversation" + (" with this system message" if argument.strip() else ", without system message"))
    else:
        _note(HELP)
    return True


def _lines(source: TextIO) -> Iterator[str]:
    """The lines of a pipe or file, or of a terminal with a prompt and line editing."""
    if source is not sys.stdin or not source.isatty():
        yield from (line.rstrip("\n") for line in source)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # history and editing for input()
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            _note("")
            return


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """A text without control characters, by which a reply could change the terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")
