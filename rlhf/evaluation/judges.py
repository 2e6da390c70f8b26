"""Judges at work: every judge scores every completion, or compares the completions of two policies."""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf import processes, progress
from rlhf.config.project import ProjectConfig
from rlhf.data.records import Prompt, Text, as_completion
from rlhf.errors import UserError
from rlhf.evaluation.kept import GrowingFile, Kept
from rlhf.evaluation.samples import Row, SampledCompletion
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.endpoint import EndpointJudge
from rlhf.rewards.load import load_rewards


class CachedScores:
    """A judge that is asked once about what it is asked again, so that identical completions tie.

    A model's score of the same text differs by rounding from batch to batch.

    Args:
        judge: The judge; one that all processes ask together where the file is theirs too (`shares.by_all`).
        path: A file that keeps its answers, all those of a call or none, for a stage that is interrupted.
    """

    def __init__(self, judge: RewardFunction, path: Path | None = None) -> None:
        self.judge = judge
        self.file = None if path is None else GrowingFile(path)
        self.known: dict[str, float | None] = {}
        for answers in self.file or ():
            self.known.update(answers)

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """A score per completion."""
        rows = zip(prompts, completions, *columns.values(), strict=True)
        keys = [_key(row) for row in rows]
        first = {key: place for place, key in reversed([*enumerate(keys)]) if key not in self.known}
        new = sorted(first.values())
        if new:
            arguments = ([values[place] for place in new] for values in (prompts, completions))
            more = {name: [values[place] for place in new] for name, values in columns.items()}
            scores = self.judge(*arguments, **more)
            answers = dict(zip((keys[place] for place in new), scores, strict=True))
            if self.file is not None:
                self.file.add([answers])
            self.known.update(answers)
        return [self.known[key] for key in keys]


def _key(row: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=repr).encode()).hexdigest()


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
        with progress.phase(f"scoring by {name}"):
            values = judge(texts, written, **columns)
        for (_, sample), value in zip(flat, values, strict=True):
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


def prefer(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], name: str, judge: EndpointJudge, kept: Kept) -> None:
    """Have a judge compare sample with sample of every pair of policies, in place (`Row.preferences`).

    Args:
        rows: Prompts with the completions of all policies.
        pairs: Policy and baseline.
        name: The judge's name.
        judge: The judge.
        kept: What it said before an interruption, and what that cost, which its report then has as well.
    """
    stage = kept.once("stage", lambda: uuid.uuid4().hex)  # of the main process, which alone asks an endpoint
    counts: Counter[str] = Counter()
    for policy, baseline in pairs:
        versus = f"{policy} vs {baseline}"
        asked = [
            (row["prompt"], *(as_completion(row["prompt"], sample["text"]) for sample in pair))
            for row in rows
            for pair in zip(row["replies"][policy], row["replies"][baseline], strict=True)
        ]
        columns = [list(column) for column in zip(*asked, strict=True)]
        ask = functools.partial(_ask, judge, columns, f"{stage} {versus}")
        said = kept.once(f"{name}, {versus}", functools.partial(processes.from_main, ask))
        counts.update(said["counts"])
        answers = iter(said["shares"])
        for row in rows:
            shares = [next(answers) for _ in row["replies"][policy]]
            row.setdefault("preferences", {}).setdefault(name, {})[versus] = shares
    judge.counts = counts


def _ask(judge: EndpointJudge, columns: list[list[Any]], work: str) -> dict[str, Any]:
    """The shares that a judge gives, and what that adds to its report."""
    before = judge.counts.copy()
    shares = judge.prefer(*columns, work=work)
    return {"shares": shares, "counts": judge.counts - before}


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
