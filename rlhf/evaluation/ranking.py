"""Which of a policy's replies to a prompt are kept, by their scores: the best and the worst, or the best alone.

Sources: pairs of best and worst of n are those of iterative DPO (Dong et al., "RLHF Workflow", 2024); the best of n as
a demonstration is rejection sampling (Touvron et al., "Llama 2", 2023, section 3.2.3) or RAFT (Dong et al., 2023).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf.evaluation.samples import SampledCompletion
from rlhf.evaluation.stats import wilson_interval
from rlhf.policies.settings import SamplingSettings

EMPTY = "every reply is empty"
NO_SCORE = "no judge scored a reply"
ALL_CUT = "every reply was cut at max_new_tokens"
SAME = "every reply is the same"
TIE = "no reply scores lower than the best"
CLOSE = "best and worst closer than min_margin"
LOW = "best reply below min_score"
_LONGER = 0.6
"""Share of pairs with the longer reply chosen above which a reader is told."""


@dataclass
class RankSettings(SamplingSettings):
    """How replies are sampled, and which of them are kept. Read by the config layer from this source."""

    samples: int = 8
    """Replies a prompt. More finds better and worse ones, ever more slowly at a cost in proportion, and finds more
    replies that only a wrong reward likes. Usually 4 to 32."""
    prompts: int | None = None
    """Most prompts replied to, drawn from those of the training side. More costs time in proportion and gives more
    rows; null takes all. Usually 1,000 to 60,000."""
    keep: str = "pairs"
    """What is kept of a prompt: its best and its worst reply as a preference (`pairs`), which stages on pairs train on,
    or its best alone as a demonstration (`best`), which rft trains on."""
    rewards: dict[str, float] | None = None
    """Name: weight, as in ppo. One reward counts in its own units; each of several is brought to mean 0 and standard
    deviation 1 over all replies. Without this setting it is the run's reward model if there is one, else all under
    `rewards:` with weight 1."""
    min_margin: float = 0.0
    """Prompts whose best and worst reply are closer than this are dropped; in units of the score. More keeps fewer and
    clearer pairs: a reward model is more often wrong about close ones. Usually 0 to a standard deviation of scores."""
    min_score: float | None = None
    """Prompts whose best reply scores below this are dropped; in units of the score. For scores that say what is good
    enough, such as a right answer; a reward model's scores have no such point. Null drops none."""
    truncated: str = "reject"
    """What a reply cut at max_new_tokens may become: the worst and never the best (`reject`), neither (`drop`), or
    either (`score`), for models that never end. A cut reply as the best teaches not to end."""


class Kept(NamedTuple):
    """The replies of a prompt that are kept, by number."""

    best: int
    worst: int | None
    """None where no reply scores lower, which `min_score` allows."""


def choose(replies: Sequence[SampledCompletion], scores: Sequence[float], settings: RankSettings) -> Kept | str:
    """The best and the worst reply to a prompt, or why none is kept. Of equal scores the first counts.

    Args:
        replies: Their texts, and whether each ended by itself.
        scores: One a reply, NaN where no judge gave one.
        settings: What may be kept.
    """
    written = [number for number, reply in enumerate(replies) if reply["text"].strip()]
    if not written:
        return EMPTY
    scored = [number for number in written if not math.isnan(scores[number])]
    if not scored:
        return NO_SCORE
    ended = [number for number in scored if replies[number]["finished"] or settings.truncated == "score"]
    if not ended:
        return ALL_CUT
    best = max(ended, key=lambda number: (scores[number], -number))
    if settings.min_score is not None and scores[best] < settings.min_score:
        return LOW
    good = settings.keep == "best" and settings.min_score is not None
    text = replies[best]["text"].strip()
    others = [
        number for number in (ended if settings.truncated == "drop" else scored)
        if replies[number]["text"].strip() != text
    ]  # fmt: skip
    worst = min(others, key=lambda number: (scores[number], number), default=None)
    if worst is None:
        return Kept(best, None) if good else SAME
    margin = scores[best] - scores[worst]
    if margin <= 0:
        return Kept(best, None) if good else TIE
    return Kept(best, worst) if margin >= settings.min_margin else CLOSE


@dataclass
class Measures:
    """What is known of all prompts once their replies have been chosen from.

    Args:
        judges: Names of the rewards.
    """

    judges: Sequence[str]
    prompts: int = 0
    kept: int = 0
    replies: int = 0
    cut: int = 0
    pairs: int = 0
    longer: float = 0.0
    """Pairs whose better reply is the longer one; a pair of equal lengths counts half."""
    margin: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    scores: dict[str, Counter[str]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, replies: Sequence[SampledCompletion], scores: Sequence[float], kept: Kept | str) -> None:
        """Count a prompt.

        Args:
            replies: To this prompt, with each judge's scores.
            scores: Those that were chosen by.
            kept: What `choose` says.
        """
        self.prompts += 1
        self.replies += len(replies)
        self.cut += sum(not reply["finished"] for reply in replies)
        for reply in replies:
            self._score("all", reply)
        if isinstance(kept, str):
            self.refused[kept] += 1
            return
        self.kept += 1
        best = replies[kept.best]
        self._score("best", best)
        self.tokens["best"] += best["tokens"] or 0
        if kept.worst is None:
            return
        worst = replies[kept.worst]
        self._score("worst", worst)
        self.tokens["worst"] += worst["tokens"] or 0
        self.pairs += 1
        self.margin += scores[kept.best] - scores[kept.worst]
        difference = (best["tokens"] or 0) - (worst["tokens"] or 0)
        self.longer += 0.5 if difference == 0 else float(difference > 0)

    def _score(self, place: str, reply: SampledCompletion) -> None:
        for judge in self.judges:
            if (value := reply["scores"].get(judge)) is not None:
                self.scores.setdefault(judge, Counter())[place] += value  # type: ignore[assignment]  # sums of floats
                self.counts.setdefault(judge, Counter())[place] += 1

    def report(self) -> dict[str, Any]:
        """The means and shares, as stage.json has them; null where nothing was counted."""
        pairs, low_high = self.pairs, wilson_interval(self.longer, self.pairs)
        return {
            "prompts": self.prompts,
            "kept": self.kept,
            "replies": self.replies,
            "cut": _share(self.cut, self.replies),
            "ties": _share(self.refused[TIE] + self.refused[SAME], self.prompts),
            "judges": {
                judge: {
                    place: _share(self.scores.get(judge, Counter())[place], self.counts.get(judge, Counter())[place])
                    for place in ("best", "worst", "all")
                }
                for judge in self.judges
            },
            "margin": _share(self.margin, pairs),
            "length_best": _share(self.tokens["best"], self.kept),
            "length_worst": _share(self.tokens["worst"], pairs),
            "longer": _share(self.longer, pairs),
            "longer_ci": list(low_high) if pairs else None,
        }

    def warning(self) -> str | None:
        """That the better replies are mostly the longer ones, where they are."""
        if not self.pairs or self.longer / self.pairs < _LONGER or wilson_interval(self.longer, self.pairs)[0] <= 0.5:
            return None
        best, worst = self.tokens["best"] / self.kept, self.tokens["worst"] / self.pairs
        return (
            f"the better reply is the longer one in {self.longer / self.pairs:.0%} of pairs (mean {best:.0f} tokens, "
            f"of the worse {worst:.0f}), so that length can be learned instead; see whether the rewards like length"
        )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
