"""Judges at work: every judge scores every completion, or compares the completions of two policies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.config.project import ProjectConfig
from rlhf.data.records import Prompt, Text, as_completion
from rlhf.errors import UserError
from rlhf.evaluation.samples import Row, SampledCompletion
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.endpoint import EndpointJudge
from rlhf.rewards.load import load_rewards


class CachedScores:
    """A judge that is asked once about what it is asked again, so that identical completions tie.

    A model's score of the same text differs by rounding from batch to batch.
    """

    def __init__(self, judge: RewardFunction) -> None:
        self.judge = judge
        self.known: dict[str, float | None] = {}

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """A score per completion."""
        rows = zip(prompts, completions, *columns.values(), strict=True)
        keys = [json.dumps(row, sort_keys=True, default=repr) for row in rows]
        first = {key: place for place, key in reversed([*enumerate(keys)]) if key not in self.known}
        new = sorted(first.values())
        if new:
            arguments = ([values[place] for place in new] for values in (prompts, completions))
            more = {name: [values[place] for place in new] for name, values in columns.items()}
            scores = self.judge(*arguments, **more)
            self.known.update(zip((keys[place] for place in new), scores, strict=True))
        return [self.known[key] for key in keys]


def score(
    completions: Sequence[Sequence[SampledCompletion]],
    prompts: Sequence[Prompt],
    judges: Mapping[str, RewardFunction],
) -> None:
    """Let every judge score every completion, in place.

    Args:
        completions: Those of each prompt.
        prompts: The prompts; their other columns are handed to the judges.
        judges: By name.
    """
    flat = [(prompt, sample) for prompt, samples in zip(prompts, completions, strict=True) for sample in samples]
    columns = columns_of([prompt.extra for prompt, _ in flat])
    texts = [prompt.prompt for prompt, _ in flat]
    written = [as_completion(prompt.prompt, sample["text"]) for prompt, sample in flat]
    for name, judge in judges.items():
        for (_, sample), value in zip(flat, judge(texts, written, **columns), strict=True):
            sample["scores"][name] = value


def note(
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    policy: str,
    completions: Sequence[list[SampledCompletion]],
    judges: Mapping[str, RewardFunction],
) -> None:
    """Let every judge score a policy's completions, and write them into their rows.

    Args:
        rows: A row a prompt.
        prompts: What judges see as the prompts.
        policy: Whose completions.
        completions: Those of each row, not scored yet.
        judges: By name.
    """
    score(completions, prompts, judges)
    for row, samples in zip(rows, completions, strict=True):
        row["replies"][policy] = samples


def prefer(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], name: str, judge: EndpointJudge) -> None:
    """Have a judge compare sample with sample of every pair of policies, in place (`Row.preferences`).

    Args:
        rows: Prompts with the completions of all policies.
        pairs: Policy and baseline.
        name: The judge's name.
        judge: The judge.
    """
    for policy, baseline in pairs:
        asked = [
            (row["prompt"], *(as_completion(row["prompt"], sample["text"]) for sample in pair))
            for row in rows
            for pair in zip(row["replies"][policy], row["replies"][baseline], strict=True)
        ]
        answers = iter(judge.prefer(*(list(column) for column in zip(*asked, strict=True))))
        for row in rows:
            shares = [next(answers) for _ in row["replies"][policy]]
            row.setdefault("preferences", {}).setdefault(name, {})[f"{policy} vs {baseline}"] = shares


def try_functions(project: ProjectConfig, prompts: Sequence[Prompt]) -> None:
    """Let the functions that judge score a completion, and an empty one, which a policy may write too.

    Raises:
        UserError: One fails, or returns something else than a score per completion.
    """
    functions = load_rewards(project, names=[name for name, reward in project.rewards.items() if reward.function])
    for text, kind in (("A reply.", "a reply"), ("", "an empty reply")):
        sample = SampledCompletion(text=text, tokens=0, finished=True, kl=None, scores={})
        try:
            score([[sample.copy()] for _ in prompts], prompts, functions)
        except UserError as error:
            raise UserError(f"{error} (tried on {kind} to the first prompts)") from None
