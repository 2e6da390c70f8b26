"""Disturbs stages at random moments, starts them again, and holds what they end in against what was left alone.

    python -m tests.support.endurance --mode kill --stages sft,ppo --times 5

`make endurance` runs it and writes the tables of docs/endurance.md. The seed decides where in a run a signal falls: so
many seconds after its start, or at one of the events of its files (opening for writing, renaming, removing, fsync, a
safetensors file), where SIGKILL leaves the file as it was, empty or cut in half.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.endurance import commands, damages, disk, table
from tests.support.endurance.attempts import Server
from tests.support.endurance.campaign import Campaign, Row
from tests.support.endurance.settings import STAGES, TRAINED

TIMES = {"kill": 50, "term": 20, "disk": 20, "read-only": 1, "damage": 1, "command": None}
"""Mode -> how often each stage is disturbed, on each number of processes; a command says that itself."""
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default=",".join(TIMES))
    parser.add_argument("--times", type=int, help="of each stage on each number of processes, in every mode")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the rows; those of other stages and modes stay in it")
    parser.add_argument("--page", type=Path, help="Markdown file whose tables are written from the rows")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    args = parser.parse_args()
    if any(mode in args.mode for mode in ("disk", "read-only")):
        disk.in_own_namespace()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(folder.resolve(), Server(), args.seed, lambda line: print(line, flush=True))
        rows = []
        for row in _rows(campaign, args):
            campaign.say(str(row))
            rows.append(row)
            if args.out:
                _merge(args.out, row)
    if args.page:
        table.write(args.page, json.loads(args.out.read_text(encoding="utf-8")))
    return int(any(row.problems for row in rows))


def _rows(campaign: Campaign, args: Any) -> Iterator[Row]:
    for mode in args.mode.split(","):
        times = args.times or TIMES[mode]
        if mode == "command":
            yield from (commands.interrupt(campaign, command, times) for command in commands.COMMANDS)
            continue
        for processes in map(int, args.processes.split(",")):
            for stage in args.stages.split(","):
                if processes > 1 and (stage not in TRAINED or mode not in _SIGNALS):
                    continue
                if mode in _SIGNALS:
                    yield campaign.disturb(mode, _SIGNALS[mode], stage, processes, times)
                elif mode == "disk":
                    yield disk.fill(campaign, stage, times)
                elif mode == "read-only":
                    yield disk.read_only(campaign, stage)
                elif stage in TRAINED:
                    yield damages.damage(campaign, stage)


def _merge(path: Path, row: Row) -> None:
    """Put a row in the place of an earlier one of the same mode, stage and number of processes."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    keys = ("mode", "stage", "processes")
    rows = [other for other in rows if [other[key] for key in keys] != [getattr(row, key) for key in keys]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*rows, asdict(row)], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
