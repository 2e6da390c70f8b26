"""Types of settings that several sections have: numbers within an interval, flags and shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from rlhf.config.ranges import Interval

STRICT = ConfigDict(extra="forbid")


def within(interval: str | Interval) -> AfterValidator:
    """Check that a number lies in an interval."""
    interval = Interval.of(interval) if isinstance(interval, str) else interval

    def validate(value: float) -> float:
        if problem := interval.problem(value):
            raise PydanticCustomError("interval", "{problem}", {"problem": problem})
        return value

    return AfterValidator(validate)


PLAIN = Field(strict=True)
"""A number is no boolean, and no text that looks like one."""
Flag = Annotated[bool, PLAIN]
Share = Annotated[float, PLAIN, within("[0, 1]")]
Count = Annotated[int, PLAIN, within("[1, 1e9]")]
