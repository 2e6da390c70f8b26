"""The runs of a folder, and their table."""

from __future__ import annotations

import datetime
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rlhf.artifacts.rounds import ROUND
from rlhf.errors import UserError
from rlhf.history.state import RunState, state_of
from rlhf.pipeline.runs import is_run

_STYLES = {"stale": "yellow", "running": "cyan", "failed": "red", "interrupted": "yellow", "shut": "red"}
_EXPLAINED = ("stale", "failed", "interrupted", "running")
"""States whose reason has a line below the table."""
_BE = {"failed": ""}
"""What stands before a state in a sentence, where it is not `is`."""


def list_runs(folder: Path) -> list[RunState]:
    """The runs in a folder, that of a run itself included, with their later rounds; the last to change comes first.

    Raises:
        UserError: There is no such folder, or no run in it.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder of runs")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    first = [path for path in (folder, *inside) if is_run(path)]
    rounds = [path for run in first for path in sorted(run.glob("round-*")) if (path / ROUND).is_file()]
    runs = {path.resolve(): path for path in (*first, *rounds)}  # a run that is given has its rounds in it
    if not runs:
        raise UserError(f"{folder}: no run is in it; rlhf run CONFIG begins one")
    return sorted(map(state_of, runs.values()), key=lambda run: (run["changed"] or "", run["name"]), reverse=True)


def runs_table(runs: list[RunState]) -> Group:
    """A line for each run, and below it why stages are not done."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Run", "Stages", "Comparisons", "Last change", "Size"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "Size" else "left")
    for run in runs:
        cells = (_stages(run), Text(_verdicts(run)), Text(_when(run["changed"])), Text(_size(run["bytes"])))
        table.add_row(Text(run["name"]), *cells)
    lines = []
    for run in runs:
        for problem in (run["problem"], run["note"]):
            lines += [Text(f"{run['name']}: {problem}", style="yellow")] if problem else []
        lines += [
            Text(f"{run['name']}: {stage['stage']} {_BE.get(stage['state'], 'is ')}{stage['state']}: {stage['why']}")
            for stage in run["stages"]
            if stage["state"] in _EXPLAINED and stage["why"]
        ]
    return Group(table, *([Text()] if lines else []), *lines)


def _stages(run: RunState) -> Text:
    """The stages in groups of one state, in the order in which they run."""
    if run["problem"]:
        return Text("damaged", style="red")
    groups: dict[str, list[str]] = {}
    for stage in run["stages"]:
        groups.setdefault(stage["state"], []).append(stage["stage"])
    shown = [Text(f"{state}: {', '.join(names)}", style=_STYLES.get(state, "")) for state, names in groups.items()]
    return Text("\n").join(shown)


def _verdicts(run: RunState) -> str:
    if run["verdicts"] is None:
        return "–"
    return ", ".join(f"{count} {verdict}" for verdict, count in run["verdicts"].items()) or "none"


def _when(moment: str | None) -> str:
    if moment is None:
        return "–"
    return datetime.datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def _size(size: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.1f} TB"
