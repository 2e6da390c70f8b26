"""Processor seconds of the parts of a rollout, for rows of ppo.py that take turns in one process.

usage: python benchmarks/ppo_parts.py [--pairs FILE] [--repeats 8] [--rows lora,lora-shared] [--threads 1]

For a machine that is not quiet: of each part the least over the repeats counts, on one thread, and what others do on
it adds to all but the least. It says what a change gives, not how fast a run is; ppo.py says that.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ppo import ROWS, TRIED
from ppo_ours import make_trainer
from setting import chosen_rows, environment, parser, print_table, size_of, write_result, write_setting

EPOCHS, EVERY = 4, 5
"""Passes over a rollout, and of which micro-batches the steps are timed: every fifth stands for all."""


def measure(trainers: dict[str, Any], repeats: int) -> dict[str, dict[str, float]]:
    """Of each row the least seconds of collecting a rollout, and of all its forward and backward passes."""
    best: defaultdict[tuple[str, str], float] = defaultdict(lambda: float("inf"))

    def timed(row: str, part: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        best[row, part] = min(best[row, part], time.process_time() - start)
        return result

    for repeat in range(repeats):
        for row, trainer in trainers.items():
            size = trainer.args.per_device_train_batch_size
            rollout = timed(row, "rollout", lambda trainer=trainer: trainer.collect_rollout(0))
            order = rollout.by_length(range(len(rollout.inputs)), trainer.policy)
            for begin in range(size, len(order), EVERY * size):
                batch = rollout.micro_batch(order[begin : begin + size], float(rollout.mask_BT.sum()), trainer.policy)
                step = {"micro_batch": batch}
                timed(row, str(begin), lambda trainer=trainer, step=step: trainer.training_step(trainer.model, step))
            trainer.model.zero_grad()
            trainer._sums.clear()
        print(f"{repeat + 1}/{repeats}", file=sys.stderr, flush=True)
    found = {}
    for row, trainer in trainers.items():
        steps = [seconds for (name, part), seconds in best.items() if name == row and part != "rollout"]
        count = trainer.args.completions_per_process / trainer.args.per_device_train_batch_size
        found[row] = {"rollout": best[row, "rollout"], "training": EPOCHS * count * sum(steps) / len(steps)}
        found[row]["all"] = sum(found[row].values())
    return found


def main() -> None:
    """Run, print, write."""
    args = parser("Processor seconds of PPO's parts.", "ppo_parts", repeats=8).parse_args()
    size, known = size_of(args), {name: job for name, job in (ROWS | TRIED).items() if job.side == "ours"}
    torch.set_num_threads(args.threads or 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_setting(folder, args.pairs, size, size.batch)
        trainers = {}
        for row in chosen_rows(args.rows, known):
            job = replace(known[row], batch=size.batch, episodes=size.batch, reply=size.reply)
            trainers[row] = make_trainer(folder, asdict(job))
            trainers[row].create_optimizer_and_scheduler(EPOCHS)
        found = measure(trainers, args.repeats)
    lines = [[row, *(f"{seconds:.1f}" for seconds in mine.values())] for row, mine in found.items()]
    print_table(["row", "rollout", "training", "all, processor seconds"], lines)
    write_result(args.out, size, args, environment=environment(), rows=found)


if __name__ == "__main__":
    main()
