"""Rounds: a run starts from the policy that the round before left, and trains on the votes of all earlier rounds.

A round is a run of its own, in `round-N/` of the first. The votes are frozen there when the round begins, so that what
is voted later makes nothing stale. Light: no torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.artifacts.json_files import write_json
from rlhf.artifacts.manifest import is_finished
from rlhf.artifacts.rounds import ROUND, VOTES, RoundRecord, read_round, round_dir
from rlhf.config.project import ModelConfig, ProjectConfig, StageConfig
from rlhf.config.sets import MOST_WEIGHT, DataConfig, DatasetConfig, SourceConfig
from rlhf.data.vote_rows import ROWS
from rlhf.data.vote_source import FORMATS
from rlhf.data.votes import Vote, read_votes
from rlhf.durable import rename_durably, sync_tree
from rlhf.errors import UserError
from rlhf.workflow import BASE, later_stages, policies_of, stage_of

_WEIGHED = ("preferences", "feedback")
"""Sets whose own rows `rounds.earlier` weighs."""


def begin(project: ProjectConfig, number: int) -> ProjectConfig:
    """The project of a round; where it has not begun yet, the votes of the earlier rounds are frozen first.

    Args:
        project: The project as its YAML says.
        number: The round, from 2 on.

    Raises:
        UserError: There is no such round, the one before is not finished, or there is nothing new to train on.
    """
    if number < 2:
        raise UserError(f"--round {number}: the plain run is round 1; the next is --round 2")
    names = later_stages(project)
    earlier = of_round(project, number - 1)
    start = left_policy(earlier)
    if not is_finished(earlier.run_dir / start):
        done = f"round {number - 1} is not finished: {earlier.run_dir / start} is not done"
        again = f"rlhf run {project.path}" + (f" --round {number - 1}" if number > 2 else "")
        raise UserError(f"{done}; run it ({again}), or name another stage as rounds.start")
    folder = round_dir(project.run_dir, number)
    if (record := read_round(folder)) is not None:
        settled = RoundRecord(**{**record, "start": start, "leaves": left_policy(of_round(project, number))})
        if settled != record:
            write_json(folder / ROUND, settled)
        return of_round(project, number)
    votes = _votes_of(project, number)
    rows = {role: [row for cast in votes for row in of_role(cast)] for role, of_role in ROWS.items()}
    counts, total = {role: len(given) for role, given in rows.items()}, sum(map(len, votes))
    _check_new(project, number, total, counts, names)
    leaves = left_policy(_made(project, number, counts))
    _freeze(folder, RoundRecord(round=number, start=start, leaves=leaves, votes=total, rows=counts), rows)
    return of_round(project, number)


def of_round(project: ProjectConfig, number: int) -> ProjectConfig:
    """The project of a round that has begun, of the first the project itself.

    Raises:
        UserError: It has not begun, or a stage of it needs one that it lacks.
    """
    if number == 1:
        return project
    if (record := read_round(round_dir(project.run_dir, number))) is None:
        raise UserError(f"round {number} has not begun: rlhf run {project.path} --round {number}")
    return _made(project, number, record["rows"])


def _made(project: ProjectConfig, number: int, rows: Mapping[str, int]) -> ProjectConfig:
    """The project of a round whose votes give each set so many rows."""
    earlier = of_round(project, number - 1)
    names = later_stages(project)
    folder = round_dir(project.run_dir, number)
    return replace(
        project,
        name=folder.name,
        output_dir=str(folder.parent),
        model=_starting_from(earlier.run_dir / left_policy(earlier), project.model),
        stages={name: _of_round(stage, names) for name, stage in project.stages.items() if name in names},
        data=_data(project, folder / VOTES, rows, names),
        round=number,
    )


def left_policy(project: ProjectConfig) -> str:
    """The stage whose policy a round leaves to the next.

    Raises:
        UserError: None of its stages leaves one.
    """
    if project.rounds.start is not None:
        return project.rounds.start
    policies = [name for name in policies_of(project) if name in project.stages]
    if not policies:
        raise UserError(f"{project.path}: rounds: no stage leaves a policy for a next round to start from")
    return policies[-1]


def _starting_from(folder: Path, model: ModelConfig) -> ModelConfig:
    """A finished policy as the base model of a round; its tokenizer and template are settled."""
    return replace(
        model, name_or_path=str(folder), revision=None, scratch=None, tokenizer=None, chat_template=None,
        eos_token=None, pad_token=None,
    )  # fmt: skip


def _of_round(stage: StageConfig, names: Sequence[str]) -> StageConfig:
    """A stage's settings in a later round: where its parent does not run, it starts from the policy of the last."""
    gone = stage.parent not in (None, BASE, *names)
    return replace(stage, parent=BASE) if gone else stage


def _data(project: ProjectConfig, folder: Path, rows: Mapping[str, int], names: Sequence[str]) -> DataConfig:
    """The project's sets with the votes that its stages train on.

    What is sampled for comes from where it came from before.
    """
    data, reads = project.data, _reads(names)
    own = {role: given.sources for role in ROWS if (given := getattr(data, role)) is not None}
    own |= {role: tuple(_weighed(project, source) for source in own[role]) for role in _WEIGHED if role in own}
    roles = [role for role in ROWS if role in own or role in reads]
    mixed = {role: (*own.get(role, ()), *_frozen(project, folder, role, rows)) for role in roles}
    if "feedback" in reads and "feedback" not in own:  # pairs are judgements, too, as long as there are no others
        mixed["feedback"] = (*mixed["preferences"], *mixed["feedback"]) if mixed["feedback"] else ()
    sets: dict[str, Any] = {
        role: DatasetConfig(sources, given.holdout if (given := getattr(data, role)) is not None else None)
        for role, sources in mixed.items()
        if sources
    }
    changed = replace(data, **sets)
    supplier = data.supplier("rollouts")
    if supplier is not None and changed.supplier("rollouts") != supplier:
        changed = replace(changed, rollouts=getattr(data, supplier))
    return changed


def _reads(names: Sequence[str]) -> set[str]:
    """The sets that stages train on, whether the project has them or not; pairs stand for feedback."""
    reads = {stage_of(name).data for name in names}
    return {role for role in ROWS if role in reads or (role == "preferences" and "feedback" in reads)}


def _weighed(project: ProjectConfig, source: SourceConfig) -> SourceConfig:
    weight = source.weight * project.rounds.earlier
    if weight > MOST_WEIGHT:
        raise UserError(f"{project.path}: rounds.earlier: {source.source} would have weight {weight:g}")
    return replace(source, weight=weight)


def _frozen(project: ProjectConfig, folder: Path, role: str, rows: Mapping[str, int]) -> tuple[SourceConfig, ...]:
    """The frozen votes as a source of a set; none where they give it no row."""
    if not rows[role]:
        return ()
    file = str(folder / f"{role}.jsonl")
    return (SourceConfig(file, format=FORMATS[role], weight=project.rounds.votes, train_all=True),)


def _votes_of(project: ProjectConfig, number: int) -> list[list[Vote]]:
    """The votes of each round before this one, those that say nothing left out."""
    cast = (read_votes(round_dir(project.run_dir, before)) for before in range(1, number))
    return [[vote for vote in votes if _says(vote)] for votes in cast]


def _freeze(folder: Path, record: RoundRecord, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write what a new round records, and the rows of its votes, into its folder: all of it is there, or nothing.

    Raises:
        UserError: It cannot be written.
    """
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        if not _lives(left.suffixes[-2].removeprefix(".")):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / VOTES).mkdir(parents=True)
        for role, given in rows.items():
            if given:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in given]
                (partial / VOTES / f"{role}.jsonl").write_text("".join(lines), encoding="utf-8", errors="replace")
        write_json(partial / ROUND, record)
        sync_tree(partial)
        rename_durably(partial, folder)
    except OSError as error:
        if read_round(folder) is None:  # else another process has begun it a moment ago
            raise UserError(f"{folder}: {(error.strerror or str(error)).lower()}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _lives(pid: str) -> bool:
    """Whether a process of this machine has the number."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        pass
    return True


def _check_new(project: ProjectConfig, number: int, votes: int, rows: Mapping[str, int], names: Sequence[str]) -> None:
    """Check that a round has something to train on that the one before did not have: votes, or rows of its own making.

    Raises:
        UserError: It has not.
    """
    if any(stage_of(name).leaves == "rows" for name in names):
        return
    before = read_round(round_dir(project.run_dir, number - 1))
    arena = f"rlhf arena {round_dir(project.run_dir, number - 1)}"
    if votes <= (before["votes"] if before else 0):
        raise UserError(f"nothing new for round {number}: no votes since round {number - 1} began; cast some: {arena}")
    reads = _reads(names)
    if not any(rows[role] for role in reads):
        given = ", ".join(f"{count} {role}" for role, count in rows.items())
        raise UserError(
            f"nothing new for round {number}: the votes give {given}, and its stages ({', '.join(names)}) train on "
            f"{' and '.join(sorted(reads)) or 'none of these'}"
        )


def _says(vote: Vote) -> bool:
    """Whether a vote says anything."""
    return vote.verdict != "skip" or vote.edit is not None or any(good is not None for good in vote.good)
