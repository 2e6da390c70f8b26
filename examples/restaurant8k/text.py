"""Bookings by phone as text to text: a small T5 from nothing writes the slots, and RLOO raises their F1.

    OMP_NUM_THREADS=1 python examples/restaurant8k/text.py --data FOLDER [--budget small] [--out FOLDER]

The first FOLDER holds train.json.gz and test.json.gz of Restaurant-8k. Setting and results are in README.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf.cli import run
from rlhf.data.formats import restaurant8k

HERE = Path(__file__).parent
NOTHING = "none"
EVERY = 2
"""Of how many training rows one is supervised; the others are prompts of the online training."""
SMALL = {
    "stages.sft.num_train_epochs": 1, "stages.ppo.max_steps": 2, "stages.ppo.num_mini_batches": 2,
    "stages.ppo.per_device_train_batch_size": 16, "stages.ppo.seeds": 1, "evaluate.prompts": 20,
}  # fmt: skip
"""Settings of `--budget small`, which shows that it runs."""


def pairs(file: Path) -> Iterator[dict[str, str]]:
    """What each caller said, behind what the agent had asked for, as `source`, and the slots in it as `target`."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = json.load(lines)
    for number, row in enumerate(rows, 1):
        slots: list[Any] = restaurant8k.parse(row, f"{file}#{number}")
        asked = ", ".join(slots[0].extra["requested_slots"])
        found = [f"{slot.question}: {slot.context[start:end]}" for slot in slots for start, end in slot.answers[:1]]
        yield {"source": f"{asked} | {slots[0].context}", "target": "; ".join(found) or NOTHING}


def write_rows(data: Path, out: Path, every: int = EVERY) -> dict[str, int]:
    """Write `supervised.jsonl` and `online.jsonl`, parts of the training rows, and `held_out.jsonl`, the test rows.

    Args:
        data: Folder of train.json.gz and test.json.gz.
        out: Where to.
        every: Of how many training rows one is supervised.

    Returns:
        Rows of each.
    """
    train = list(pairs(data / "train.json.gz"))
    sets = {
        "supervised": train[::every],
        "online": [row for number, row in enumerate(train) if number % every],
        "held_out": list(pairs(data / "test.json.gz")),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {name: len(rows) for name, rows in sets.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows, and run text.yaml on them."""
    parser = argparse.ArgumentParser(description="Text to text on Restaurant-8k.")
    parser.add_argument("--data", type=Path, required=True, help="folder of train.json.gz and test.json.gz")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the rows and of the run")
    parser.add_argument("--budget", choices=("full", "small"), default="full")
    given = parser.parse_args(arguments)
    rows = given.out.absolute() / "restaurant8k-rows"
    print(write_rows(given.data, rows))
    small = given.budget == "small"
    settings = {
        **{f"data.{role}.source": rows / f"{name}.jsonl" for role, name in ROLES.items()},
        "output_dir": given.out.absolute(),
        **(SMALL if small else {}),
    }
    run(HERE / "text.yaml", [f"{key}={value}" for key, value in settings.items()])


ROLES = {"demonstrations": "supervised", "rollouts": "online", "prompts": "held_out"}


if __name__ == "__main__":
    main()
