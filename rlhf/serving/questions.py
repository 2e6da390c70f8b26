"""What a client may ask for: a request for a chat completion as OpenAI defines it, read strictly.

A field that would change the reply and that this server does not know is an error, and so is a value that it does not
serve. Fields that change nothing are ignored. A field that is null counts as absent.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rlhf.data.records import Message
from rlhf.errors import unknown_name
from rlhf.serving.replies import Sampling

_LONGEST = 80
"""Characters of a field's name that an error repeats."""
_TOKENS = 1 << 20
"""Longest reply that may be asked for."""
_SEEDS = 1 << 63
"""Seeds lie between minus this and this."""


class BadRequest(Exception):
    """A request that cannot be served.

    Args:
        reason: What is wrong with it, in a sentence.
        param: The field that is wrong.
        status: HTTP status.
        code: A name for the error.
    """

    def __init__(self, reason: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.param, self.status, self.code = reason, param, status, code


def _only(*values: Any) -> BeforeValidator:
    """A field that is served with these values alone."""

    def check(value: Any) -> Any:
        if not any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in values):
            raise ValueError(f"only {' or '.join(map(repr, values))} is served")
        return value

    return BeforeValidator(check)


def _as_list(in_list: Callable[[str], Any]) -> BeforeValidator:
    """A field that is a list, and of which a text stands for a list of one.

    A union of both would report its errors under names of pydantic's own.

    Args:
        in_list: What the text is in the list.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, str | list):
            raise ValueError("Input should be a valid string or list")
        return [in_list(value)] if isinstance(value, str) else value

    return BeforeValidator(check)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        """Leave out fields that are null, as clients send those that they do not use."""
        return (
            {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields
        )


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], _as_list(lambda text: {"type": "text", "text": text})]

    def plain(self) -> Message:
        """The message as the rest of the package knows it."""
        text = "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Question(_Strict):
    """A request for a chat completion."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=_TOKENS)] = Sampling.max_new_tokens
    max_completion_tokens: Annotated[int, Field(ge=1, le=_TOKENS)] | None = None
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4), _as_list(lambda text: text)
    ] = []
    n: Annotated[Any, _only(1)] = 1
    top_p: Annotated[Any, _only(1)] = 1
    presence_penalty: Annotated[Any, _only(0)] = 0
    frequency_penalty: Annotated[Any, _only(0)] = 0
    logit_bias: Annotated[Any, _only({})] = {}
    logprobs: Annotated[Any, _only(False)] = False
    response_format: Annotated[Any, _only({"type": "text"})] = {"type": "text"}
    modalities: Annotated[Any, _only(["text"])] = ["text"]
    tools: Annotated[Any, _only([])] = []
    tool_choice: Annotated[Any, _only("none", "auto")] = "none"
    parallel_tool_calls: bool = False
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    def prompt(self) -> list[Message]:
        """The conversation.

        Raises:
            BadRequest: Its last message is not the user's.
        """
        messages = [message.plain() for message in self.messages]
        if messages[-1]["role"] != "user":
            raise BadRequest("the last message is to be the user's", "messages")
        return messages

    def sampling(self) -> Sampling:
        """How the reply is sampled; without a seed, by one that nobody knows."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(self.temperature, self.max_completion_tokens or self.max_tokens, seed, tuple(self.stop))


def read_question(body: bytes) -> Question:
    """Read the body of a request.

    Raises:
        BadRequest: It is no JSON, or asks for what this server does not do.
    """
    try:
        return Question.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"]) or None
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = f"this server does not know it; {unknown_name(place or '', Question.model_fields)}"
    if place is not None:
        place = place[:_LONGEST]
        reason = f"{place}: {reason}"
    raise BadRequest(reason, place)
