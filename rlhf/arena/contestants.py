"""The policies that are compared: those of a run, loaded here, and models behind OpenAI-compatible endpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, cast

from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Prompt, Text, Unusable
from rlhf.data.votes import Reply

if TYPE_CHECKING:
    from rlhf.policies.kinds import PolicyKind
    from rlhf.serving.replies import PolicyReplier, Replier, Sampling

_REQUESTS = 4
"""Most requests at a time to an endpoint."""


@dataclass(frozen=True)
class Contestant:
    """A policy under comparison."""

    replier: Replier
    """Writes a reply word by word."""
    kind: PolicyKind | None = None
    """Of a policy that is loaded here: writes many replies at once, with the model of the replier."""

    @property
    def name(self) -> str:
        """What its replies are kept under: a stage, or `URL model`."""
        return self.replier.name

    def refusal(self, prompt: Prompt) -> str | None:
        """Why it cannot reply to a prompt; None where it can, as far as is known beforehand."""
        return None if self.kind is None else self.kind.refusal(prompt)

    def replies(
        self, prompts: Sequence[Prompt], settings: EvaluateConfig, seed: int, stop: Event
    ) -> list[Reply | None]:
        """A reply to each prompt, sampled together; None where there is none to such a prompt.

        Args:
            prompts: What is replied to.
            settings: How replies are sampled.
            seed: Of the sampling.
            stop: Ends requests to an endpoint when it is set.
        """
        if self.kind is not None:
            return self._complete(self.kind, prompts, settings, seed)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return list(pool.map(lambda prompt: self._ask(prompt.prompt, settings, seed, stop), prompts))

    def reply(self, prompt: Text, text: str, finished: bool) -> Reply:
        """What it wrote; to a conversation without white space at its ends."""
        text = text if isinstance(prompt, str) else text.strip()
        return Reply(self.name, text, self.replier.artifact, finished)

    def _complete(
        self, kind: PolicyKind, prompts: Sequence[Prompt], settings: EvaluateConfig, seed: int
    ) -> list[Reply | None]:
        """Replies of a policy that is loaded here, to prompts in the form that it was trained on."""
        replier = cast("PolicyReplier", self.replier)
        asked: dict[int, Prompt] = {}
        for place, prompt in enumerate(prompts):
            with contextlib.suppress(Unusable):
                asked[place] = replace(prompt, prompt=replier.as_trained(prompt.prompt))
        if not asked:
            return [None] * len(prompts)
        batched = replace(settings, batch_size=min(settings.batch_size, len(asked)))
        completed = kind.complete(replier.model, [*asked.values()], batched, samples=1, seed=seed, label="")
        replies = {
            place: self.reply(prompt.prompt, row[0].text, row[0].finished)
            for (place, prompt), row in zip(asked.items(), completed.completions, strict=True)
        }
        return [replies.get(place) for place in range(len(prompts))]

    def _ask(self, prompt: Text, settings: EvaluateConfig, seed: int, stop: Event) -> Reply | None:
        sampling = sampling_of(settings, seed)
        try:
            stream = self.replier.stream(prompt, sampling, stop)
            return self.reply(prompt, stream.text(), stream.finished)
        except Unusable:
            return None


def sampling_of(settings: EvaluateConfig, seed: int) -> Sampling:
    """How replies are sampled: as for the comparison of the run."""
    from rlhf.serving.replies import Sampling

    return Sampling(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, seed=seed)


def sampling_record(sampling: Sampling) -> dict[str, float | int]:
    """What is kept of it with a comparison."""
    return {
        "temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens, "seed": sampling.seed,
    }  # fmt: skip
