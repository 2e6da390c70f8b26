"""Talk to a stage in the terminal, or through a pipe: a line in, a reply out, token by token."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from rlhf.artifacts.open import open_stage
from rlhf.data.records import Message, Text, Unusable
from rlhf.data.tokenize import Codec
from rlhf.models.load import context_length
from rlhf.policies.completion import decode
from rlhf.policies.sample import stop_ids

HELP = "/reset starts over, /system TEXT sets a system message and starts over, /quit (or Ctrl-D) leaves."


@dataclass
class Conversation:
    """A policy, and what was said so far."""

    model: PreTrainedModel
    codec: Codec
    name: str
    as_messages: bool = True
    """Whether the stage was trained on messages; on plain text, each line is a prompt of its own."""
    messages: list[Message] = field(default_factory=list)

    @property
    def limit(self) -> int | None:
        """Most tokens of prompt and reply together."""
        return context_length(self.model.config)

    def restart(self, system: str | None = None) -> None:
        """Forget what was said; with a system message, begin with that."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def reply(self, line: str, temperature: float, max_new_tokens: int, out: TextIO) -> str:
        """Reply to a line, writing tokens as they come, and keep both in the conversation.

        Args:
            line: What the user said.
            temperature: Divides the logits; 0 takes the likeliest token.
            max_new_tokens: Longest reply, in tokens; less where the context ends before.
            out: Where the reply is written.

        Raises:
            Unusable: The prompt leaves no room for a reply, or the chat template refuses it.
        """
        turns: list[Message] = [*self.messages, {"role": "user", "content": line}]
        prompt: Text = turns if self.as_messages else line
        ids = self.codec.prompt(prompt)
        room = max_new_tokens if self.limit is None else min(max_new_tokens, self.limit - len(ids))
        if room < 1:
            hint = "; /reset starts over" if len(turns) > 1 else ""
            raise Unusable(f"{len(ids)} tokens leave no room for a reply in the model's context of {self.limit}{hint}")
        text = _generate(self.model, self.codec.tokenizer, ids, temperature, room, out)
        if self.as_messages:
            self.messages = [*turns, {"role": "assistant", "content": text}]
        return text


def load_conversation(folder: Path) -> Conversation:
    """Load a finished stage to talk to.

    Args:
        folder: The stage's folder.

    Raises:
        UserError: It cannot be loaded, is no causal language model, or its base changed.
    """
    stage = open_stage(folder)
    as_messages = stage.manifest.get("prompt_format", "messages") == "messages"
    name = f"{folder.resolve().parent.name}:{folder.name}"
    return Conversation(stage.policy().eval(), Codec(stage.tokenizer), name, as_messages)


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
    """Read lines until they end or `/quit`; write a reply to each. Replies go to `out`, all else to stderr.

    Args:
        folder: A finished policy stage's folder.
        temperature: Sampling temperature; 0 is greedy.
        max_new_tokens: Longest reply, in tokens.
        seed: Seed of the sampling: the same lines give the same replies.
        system: A system message to begin with.
        lines: Where lines come from; stdin if None.
        out: Where replies go; stdout if None.

    Raises:
        UserError: The stage cannot be loaded.
    """
    out = out or sys.stdout
    with torch.random.fork_rng():  # loading draws numbers too
        conversation = load_conversation(folder)
    conversation.restart(system)
    form = "" if conversation.as_messages else " It was trained on plain text: each line is a prompt of its own."
    _note(f"{conversation.name}.{form} {HELP}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for line in _lines(lines or sys.stdin):
            if not line.strip():
                continue
            if line.strip().startswith("/"):
                if not _command(line.strip(), conversation):
                    return
                continue
            try:
                conversation.reply(line, temperature, max_new_tokens, out)
            except Unusable as problem:
                _note(problem.reason)
            except KeyboardInterrupt:
                _note("\nstopped; that turn is forgotten")


def _command(line: str, conversation: Conversation) -> bool:
    """Obey a line that begins with `/`; False means leave."""
    name, _, argument = line.partition(" ")
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        conversation.restart()
        _note("a new conversation")
    elif name == "/system" and not conversation.as_messages:
        _note("trained on plain text, the model knows no system message")
    elif name == "/system":
        conversation.restart(argument.strip())
        _note("a new conversation" + (" with this system message" if argument.strip() else ", without system message"))
    else:
        _note(HELP)
    return True


def _lines(source: TextIO) -> Iterator[str]:
    """Lines of a pipe or file; from a terminal with a prompt and line editing."""
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
    """A text without the control characters by which a reply could steer the terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


class _Writer(TextStreamer):
    """Writes a reply as its words are complete, without what would steer the terminal."""

    def __init__(self, tokenizer: Any, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out, self._begun = out, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write text; a line ends where the reply does."""
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        self.out.write(printable(text) + ("\n" if stream_end else ""))
        self.out.flush()


@torch.no_grad()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    temperature: float,
    room: int,
    out: TextIO,
) -> str:
    """One reply to a prompt of token ids, as evaluation samples it: no top-k, no top-p."""
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=room, eos_token_id=stop_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, **sampling,
    )  # fmt: skip
    prompt = torch.tensor([ids], device=model.device)
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=config,
        streamer=_Writer(tokenizer, out),
    )
    return decode(output[0, len(ids) :].tolist(), tokenizer).strip()
