"""Talks with a stage in the terminal or through a pipe: for each line of input it writes a reply, token by token."""

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
from rlhf.errors import UserError
from rlhf.models.load import context_length
from rlhf.models.tasks import CAUSAL_LM, SEQ2SEQ
from rlhf.policies.completion import decode
from rlhf.policies.sample import stop_ids
from rlhf.policies.seq2seq_sampler import start_ids

HELP = "/reset starts over, /system TEXT sets a system message and starts over, /quit (or Ctrl-D) leaves."


@dataclass
class Conversation:
    """A policy, and the messages so far."""

    model: PreTrainedModel
    codec: Codec
    name: str
    as_messages: bool = True
    """Whether the stage was trained on messages. If it was trained on plain text, each line is a new prompt."""
    messages: list[Message] = field(default_factory=list)

    @property
    def limit(self) -> int | None:
        """The largest number of tokens of prompt and reply together; of an encoder-decoder, of each."""
        return context_length(self.model.config)

    def _taken(self, ids: list[int]) -> int:
        """How many positions a prompt leaves no reply; an encoder-decoder's has its own."""
        fits = self.limit is not None and len(ids) <= self.limit
        return 1 if self.model.config.is_encoder_decoder and fits else len(ids)

    def restart(self, system: str | None = None) -> None:
        """Forget all messages; begin with a system message, if one is given."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def reply(self, line: str, temperature: float, max_new_tokens: int, out: TextIO) -> str:
        """Reply to a line, write tokens as they come, and keep both messages.

        Args:
            line: What the user said.
            temperature: Divides the logits; 0 takes the likeliest token.
            max_new_tokens: Longest reply, in tokens; the end of the context may cut it shorter.
            out: Where the reply is written.

        Raises:
            Unusable: The prompt leaves no room for a reply, or the chat template refuses it.
        """
        turns: list[Message] = [*self.messages, {"role": "user", "content": line}]
        prompt: Text = turns if self.as_messages else line
        ids = self.codec.prompt(prompt)
        room = max_new_tokens if self.limit is None else min(max_new_tokens, self.limit - self._taken(ids))
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
        UserError: It cannot be loaded, writes no text, or its base changed.
    """
    stage = open_stage(folder)
    if stage.task not in (CAUSAL_LM, SEQ2SEQ):
        raise UserError(f"{folder}: a {stage.task.policy} policy cannot write replies; a language model can")
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
    elif name == "/system" and not conversation.as_messages:
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


class _Writer(TextStreamer):
    """Writes a reply word by word, without control characters."""

    def __init__(self, tokenizer: Any, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out, self._started = out, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write text; the reply's end ends the line."""
        text = text if self._started else text.lstrip()
        self._started = self._started or bool(text)
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
    decodes = bool(model.config.is_encoder_decoder)
    written = start_ids(model) if decodes else ids
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=room, eos_token_id=stop_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, **sampling,
    )  # fmt: skip
    prompt = torch.tensor([ids], device=model.device)
    generate: Any = model.generate  # whose decorators hide its type
    output = generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=config,
        streamer=_Writer(tokenizer, out),
        **({"decoder_input_ids": torch.tensor([written], device=model.device)} if decodes else {}),
    )
    return decode(output[0, len(written) :].tolist(), tokenizer).strip()
