"""Replies of a finished policy, as they are written: what the terminal, the server and the arena share.

    replier = load_replier(run_dir, "dpo")
    stream = replier.stream("Where is my parcel?", Sampling(temperature=0.0))
    for piece in stream:
        print(piece, end="")
    stream.finished, stream.completion_tokens

A stream writes in a thread of its own. A model writes one reply at a time; other requests wait for it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from rlhf.artifacts.open import OpenedModel, open_stage
from rlhf.data.records import Text, Unusable, as_conversation
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.load import context_length
from rlhf.models.tasks import CAUSAL_LM, SEQ2SEQ
from rlhf.policies.completion import decode
from rlhf.policies.sample import stop_ids
from rlhf.policies.seq2seq_sampler import start_ids

_PATIENCE = 0.1
"""Seconds after which a request that waits for the model looks whether it is still wanted."""
_HALF_A_CHARACTER = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


@dataclass(frozen=True)
class Sampling:
    """How a reply is sampled: no top-k, no top-p, as in the comparison."""

    temperature: float = 0.7
    """Divides the logits; 0 takes the likeliest token."""
    max_new_tokens: int = 256
    """Longest reply, in tokens; the end of the context may cut it shorter."""
    seed: int = 0
    """The same prompt with the same seed gets the same reply."""
    stop_strings: tuple[str, ...] = ()
    """Texts before which the reply ends; none of them is empty."""


class Stream(Iterator[str]):
    """A reply as it is written: iterate over its pieces, then ask how it ended.

    Args:
        pieces: Writes the reply, and sets the other attributes on the way.
    """

    def __init__(self, pieces: Callable[[Stream], Iterator[str]]) -> None:
        self.finished = False
        """Whether the reply ended by itself, and not at the limit or because nobody wants it any more."""
        self.prompt_tokens: int | None = None
        """Tokens read, or None if a server does not say."""
        self.completion_tokens: int | None = None
        """Tokens written, the end token included, or None if a server does not say."""
        self._pieces = pieces(self)

    def __next__(self) -> str:
        return next(self._pieces)

    def text(self) -> str:
        """What is still to come, as one text."""
        return "".join(self)

    def close(self) -> None:
        """Stop writing; what was not read is lost."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


class NoRoom(Unusable):
    """A prompt leaves no room for a reply in the model's context."""


class Replier(Protocol):
    """Whatever replies to a prompt: a policy of this machine, or one behind a server."""

    artifact: str | None
    """Hash of its model's files; None where nobody records one."""

    @property
    def name(self) -> str:
        """What it is called, such as `dpo`."""
        ...

    def stream(self, prompt: Text, sampling: Sampling, stop: threading.Event | None = None) -> Stream:
        """Write a reply to a prompt.

        Args:
            prompt: Plain text, or messages of which the last is the user's.
            sampling: How it is sampled.
            stop: Ends the reply early when it is set.

        Raises:
            Unusable: There is no reply to such a prompt.
        """
        ...


class PolicyReplier:
    """A policy that is loaded on this machine.

    Args:
        model: A causal language model or an encoder-decoder.
        tokenizer: Its tokenizer.
        name: What it is called.
        artifact: Hash of its files, if they are recorded.
        as_messages: Whether it was trained on messages, and not on plain text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        artifact: str | None = None,
        as_messages: bool = True,
    ) -> None:
        self.model, self.name, self.artifact, self.as_messages = model.eval(), name, artifact, as_messages
        self.codec = Codec(tokenizer)
        self._special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._busy = threading.Lock()

    @property
    def limit(self) -> int | None:
        """The largest number of tokens of prompt and reply together; of an encoder-decoder, of each."""
        return context_length(self.model.config)

    def stream(self, prompt: Text, sampling: Sampling, stop: threading.Event | None = None) -> Stream:
        """Write a reply, as `Replier.stream` says. To messages it begins and ends without white space.

        Raises:
            Unusable: The prompt leaves no room for a reply, the chat template refuses it, a message holds a special
                token, or the policy was trained on plain text and this is a conversation.
        """
        ids = self.codec.prompt(self.as_trained(prompt))
        room = sampling.max_new_tokens
        if self.limit is not None:
            room = min(room, self.limit - self._taken(ids))
        if room < 1:
            raise NoRoom(f"{len(ids)} tokens leave no room for a reply in the model's context of {self.limit}")
        return Stream(lambda stream: self._pieces(stream, ids, room, sampling, stop or threading.Event()))

    def as_trained(self, prompt: Text) -> Text:
        """The prompt in the form that the policy was trained on.

        Raises:
            Unusable: It was trained on plain text and this is a conversation, or a message holds a special token.
        """
        if not self.as_messages:
            if isinstance(prompt, str):
                return prompt
            if [message["role"] for message in prompt] == ["user"]:
                return prompt[0]["content"]
            raise Unusable(f"{self.name} was trained on plain text: it replies to one message of the user")
        messages = as_conversation(prompt)
        for message in messages:
            if found := next((token for token in self._special if token in message["content"]), None):
                raise Unusable(f"a message holds {found!r}, by which the model tells turns apart")
        return messages

    def _taken(self, ids: list[int]) -> int:
        """How many positions a prompt leaves no reply; an encoder-decoder's has its own."""
        fits = self.limit is not None and len(ids) <= self.limit
        return 1 if self.model.config.is_encoder_decoder and fits else len(ids)

    def _pieces(
        self, stream: Stream, ids: list[int], room: int, sampling: Sampling, stop: threading.Event
    ) -> Iterator[str]:
        stream.prompt_tokens, stream.completion_tokens = len(ids), 0
        gone = threading.Event()
        writer = _Writer(
            self.model, self.codec.tokenizer, sampling, self.as_messages, lambda: stop.is_set() or gone.is_set()
        )
        threading.Thread(target=self._write, args=(writer, ids, room, sampling)).start()
        try:
            while isinstance(piece := writer.pieces.get(), str):
                stream.completion_tokens = len(writer.ids)
                yield piece
            stream.finished, stream.completion_tokens = writer.finished, len(writer.ids)
            if piece is not None:
                raise piece
        finally:
            gone.set()

    def _write(self, writer: _Writer, ids: list[int], room: int, sampling: Sampling) -> None:
        """Write a reply when it is this request's turn; its last piece is None, or what went wrong."""
        problem: BaseException | None = None
        try:
            with self._turn(writer) as mine:
                if mine:
                    _generate(self.model, self.codec.tokenizer, ids, room, sampling, writer)
        except BaseException as error:  # it is raised where the pieces are read
            problem = error
        writer.pieces.put(problem)

    @contextlib.contextmanager
    def _turn(self, writer: _Writer) -> Iterator[bool]:
        """The model for this request alone; False if nobody wants the reply any more."""
        mine = False
        while not mine and not writer.unwanted():
            mine = self._busy.acquire(timeout=_PATIENCE)
        try:
            yield mine
        finally:
            if mine:
                self._busy.release()


class _Writer(BaseStreamer, StoppingCriteria):
    """Takes the tokens of one reply as `generate` writes them, and hands on their text.

    Args:
        model: Its stop tokens end the reply.
        tokenizer: Decodes it.
        sampling: Its stop strings end the reply.
        stripped: Whether white space at both ends is left out.
        unwanted: Says whether the reply is not wanted any more.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        stripped: bool,
        unwanted: Callable[[], bool],
    ) -> None:
        self.pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self.ids: list[int] = []
        self.finished = False
        self.unwanted = unwanted
        self._tokenizer, self._stripped = tokenizer, stripped
        self._ends, self._stop_strings = frozenset(stop_ids(model, tokenizer)), sampling.stop_strings
        self._begun, self._sent = False, 0

    def put(self, value: torch.Tensor) -> None:
        """Take a token; what comes first is the prompt."""
        if not self._begun:
            self._begun = True
            return
        self.ids += value.flatten().tolist()
        if self.ids[-1] in self._ends:
            self.finished = True
        else:
            self._send(last=False)

    def end(self) -> None:
        """Hand on what was held back."""
        self._send(last=True)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        """Whether the reply ends here: at a stop string, or because nobody wants it any more."""
        return torch.full((len(input_ids),), self.finished or self.unwanted(), device=input_ids.device)

    def _send(self, last: bool) -> None:
        """Hand on the text that no further token can change."""
        text = decode(self.ids, self._tokenizer)
        text = text.lstrip() if self._stripped else text
        cuts = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if cuts:
            text, last, self.finished = text[: min(cuts)], True, True
        if not last:
            text = text[: len(text) - self._open(text)]
        if self._stripped:
            text = text.rstrip()
        if len(text) > self._sent:
            self.pieces.put(text[self._sent :])
            self._sent = len(text)

    def _open(self, text: str) -> int:
        """How many characters at the end the next tokens may change: half a character, or half a stop string."""
        halves = min(len(text) - len(text.rstrip(_HALF_A_CHARACTER)), 3)  # a character has four bytes at most
        begun = (
            size for stop in self._stop_strings for size in range(1, len(stop)) if text.endswith(stop[:size])
        )  # fmt: skip
        return max(halves, *begun, 0)


class _Draw(LogitsProcessor):
    """Draws the next token with a generator of its own, and leaves `generate` no other.

    `generate` itself draws from the random state of the whole process, which several replies at a time would share.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._temperature = max(sampling.temperature, torch.finfo(torch.float32).tiny)
        self._generator = torch.Generator(device).manual_seed(sampling.seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of one token a row.

        Args:
            input_ids: Not used.
            scores: Logits, rows by vocabulary.
        """
        logits = scores.float()
        logits = logits - logits.amax(dim=-1, keepdim=True)  # so that the likeliest stays finite at any temperature
        probabilities = torch.softmax(logits / self._temperature, dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=self._generator)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


@torch.no_grad()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    room: int,
    sampling: Sampling,
    writer: _Writer,
) -> None:
    """Write one reply to a prompt of token ids."""
    prompt = torch.tensor([ids], device=model.device)
    decoder = {}
    if model.config.is_encoder_decoder:
        decoder = {"decoder_input_ids": torch.tensor([start_ids(model)], device=model.device)}
    config = GenerationConfig(
        max_new_tokens=room, do_sample=False, eos_token_id=stop_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    generate: Any = model.generate  # whose decorators hide its type
    generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=config,
        logits_processor=[_Draw(sampling, model.device)] if sampling.temperature > 0 else [],
        stopping_criteria=StoppingCriteriaList([writer]),
        streamer=writer,
        **decoder,
    )


def replier_of(opened: OpenedModel, name: str, as_messages: bool = True) -> PolicyReplier:
    """Load a policy to reply with, its adapter merged.

    Args:
        opened: A stage, or a base model.
        name: What it is called.
        as_messages: Whether a base model gets messages; what a stage was trained on stands in its manifest.

    Raises:
        UserError: It cannot be loaded, writes no text, or it is not the model that its stage left.
    """
    if opened.task not in (CAUSAL_LM, SEQ2SEQ):
        raise UserError(f"{opened.name}: a {opened.task.policy} policy cannot write replies; a language model can")
    artifact = None
    if opened.is_stage:
        as_messages = opened.manifest.get("prompt_format", "messages") == "messages"
        artifact = opened.manifest["artifact"]
    return PolicyReplier(opened.policy(), opened.tokenizer, name, artifact, as_messages)


def load_replier(run_dir: Path, stage: str) -> PolicyReplier:
    """Load a finished stage of a run to reply with; its name is the stage's.

    Args:
        run_dir: The run's folder.
        stage: The stage.

    Raises:
        UserError: It cannot be loaded, writes no text, or it is not the model that the stage left.
    """
    return replier_of(open_stage(run_dir / stage), stage)
