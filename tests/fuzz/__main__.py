"""`python -m tests.fuzz --inputs 10000 --seed 0`: runs as many spoilt inputs, and writes what became of them.

`--table` writes the tables of docs/fuzzing.md from the results of all runs in the folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz import table
from tests.fuzz.inputs import Input, message, problems, state_of
from tests.fuzz.kinds import KINDS
from tests.fuzz.sandbox import Box, Sandbox, run_command
from tests.fuzz.world import finish_run, make_world

COMMAND_EVERY = 100
"""Every so many inputs of a kind go through the command in a process of its own."""
_AT_ONCE = 100


class Campaign:
    """Inputs run one after the other, each with a line in `results-SEED.jsonl`; those that fail are kept.

    Args:
        folder: Where results go.
        number: The seed.
        world: What inputs find.
        sandbox: Where they run.
    """

    def __init__(self, folder: Path, number: int, world: Path, sandbox: Sandbox) -> None:
        self.folder, self.world, self.sandbox = folder, world, sandbox
        self.results = (folder / f"results-{number}.jsonl").open("a", encoding="utf-8")
        self.scratch = Path(tempfile.mkdtemp(prefix="rlhf-fuzz-"))
        self.counted: dict[str, int] = {}

    def run(self, made: Input) -> None:
        """Run an input and write down how it ended."""
        number = self.counted[made.kind] = self.counted.get(made.kind, 0) + 1
        as_command = number % COMMAND_EVERY == 0
        box = Box(self.scratch / "box").make()
        try:
            made.put(self.world, box)
            before = state_of(box.folder)
            if as_command and (made.trains or made.command[0] != "run"):
                ended = run_command(box, made.command, made.limit + 60)
            else:
                as_command, ended = False, self.sandbox.run(box, made.command, made.limit, made.trains)
            wrong = problems(made, ended, box, before)
            line: dict[str, Any] = {
                "kind": made.kind, "what": made.what, "command": [word[:200] for word in made.command],
                "how": "command" if as_command else "fork", "code": ended.code, "seconds": round(ended.seconds, 3),
                "message": message(box), "problems": wrong,
            }  # fmt: skip
            if wrong:
                line["kept"] = self._keep(made, box)
            self.results.write(json.dumps(line) + "\n")
            self.results.flush()
        finally:
            _removed(box.folder)

    def _keep(self, made: Input, box: Box) -> str:
        kept = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{made.kind}-"))
        for name, content in made.files.items():
            path = kept / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.what.encode())
        (kept / "command.json").write_text(json.dumps(made.command))
        (kept / "stderr").write_text(box.read("stderr"), encoding="utf-8", errors="backslashreplace")
        return kept.name


def _removed(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def sampled(inputs: SearchStrategy[Input], count: int, number: int, run: Callable[[Input], None]) -> None:
    """Draw inputs and run each; a hundred at a time, since hypothesis varies what it has drawn before."""
    for start in range(0, count, _AT_ONCE):
        _some(inputs, min(_AT_ONCE, count - start), number * 10_000 + start, run)


def _some(inputs: SearchStrategy[Input], count: int, number: int, run: Callable[[Input], None]) -> None:
    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def every(made: Input) -> None:
        run(made)

    every()


def main() -> None:
    """Run the inputs of all kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="folder of results and of inputs that failed"
    )
    parser.add_argument("--table", action="store_true", help="write the table of docs/fuzzing.md and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        table.write(arguments.out)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = arguments.kinds.split(",")
    shares = sum(KINDS[kind].share for kind in kinds)
    sandbox = Sandbox()
    start = time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix="rlhf-fuzz-world-"))
    try:
        world = make_world(scratch / "world")
        sandbox.warm(world / "project")
        finish_run(world, sandbox)
        campaign = Campaign(arguments.out, arguments.seed, world, sandbox)
        for kind in kinds:
            count = round(arguments.inputs * KINDS[kind].share / shares)
            sampled(KINDS[kind].inputs(world), count, arguments.seed, campaign.run)
            print(
                f"{kind}: {campaign.counted.get(kind, 0)} inputs, {time.perf_counter() - start:.0f} s so far",
                flush=True,
            )
        shutil.rmtree(campaign.scratch, ignore_errors=True)
    finally:
        sandbox.close()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
