"""Which tokens a score rested on, sequence by sequence: the lines of `attributions.jsonl`.

Apart from `attribution`, which runs models: a report is made without torch.
"""

from __future__ import annotations

from typing import TypedDict

ATTRIBUTIONS = "attributions.jsonl"


class Attribution(TypedDict):
    """How one score is shared out among the tokens that a model read (`attribution`); more raises the score."""

    index: int
    """Line of samples.jsonl, from 0."""
    scorer: str
    """The policy that decided, or the reward model that scored."""
    of: str
    """The policy whose completion it is."""
    completion: str
    """The class that was decided for, or the completion that was scored."""
    score: float
    """Log odds of that class, nats, or the reward."""
    tokens: list[str]
    """What each token adds to the text."""
    leave_one_out: list[float]
    """What the score loses without the token."""
    gradient_times_input: list[float]
    """What the token's embedding adds to the score, were it linear."""
