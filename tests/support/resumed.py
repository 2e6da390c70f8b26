"""Started by torchrun on two CPU processes: stages that stop in a later epoch and go on, against whole ones."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from transformers import Trainer

from rlhf import processes
from rlhf.artifacts.manifest import artifact_hash
from rlhf.config.load import load_project
from rlhf.pipeline.execute import run_stage
from tests.support.projects import write_project

STAGES = ("sft", "reward", "dpo")
SAVED, STOPPED, ACCUMULATION = 5, 7, 2


class Stop:
    """Ends a training in this step, once."""

    def __init__(self) -> None:
        self.batches: int | None = None
        original = Trainer.training_step

        def training_step(trainer: Trainer, *args: object, **kwargs: object) -> object:
            if self.batches is not None:
                self.batches += 1
                if self.batches == STOPPED * ACCUMULATION:
                    self.batches = None
                    raise KeyboardInterrupt
            return original(trainer, *args, **kwargs)

        Trainer.training_step = training_step


def main() -> None:
    """Train each stage whole and with a stop, folded and plain; the main process compares."""
    folder, base = map(Path, sys.argv[1:])
    main_process = os.environ["RANK"] == "0"
    state = processes.state()
    stop = Stop()
    for fold, stages in ((True, STAGES), (False, STAGES[:1])):
        options = {
            "num_train_epochs": 3, "save_steps": SAVED, "learning_rate": 1e-2, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": ACCUMULATION, "fold": fold,
        }  # fmt: skip
        if main_process:
            write_project(folder, base, stages=dict.fromkeys(stages, options))
        state.wait_for_everyone()
        whole, stopped = (
            load_project(folder / "project.yaml", [f"name={kind}-{fold}"]) for kind in ("whole", "stopped")
        )
        for stage in stages:
            run_stage(whole, stage)
            stop.batches = 0
            try:
                run_stage(stopped, stage)
                raise AssertionError("went on to its end")
            except KeyboardInterrupt:
                state.wait_for_everyone()
            if main_process:
                checkpoint = stopped.run_dir / f".{stage}.partial/checkpoints/checkpoint-{SAVED}/trainer_state.json"
                assert 1 < json.loads(checkpoint.read_text())["epoch"] < 2
            run_stage(stopped, stage)
            if main_process:
                hashes = [artifact_hash(project.run_dir / stage) for project in (whole, stopped)]
                print(stage, fold, "equal" if hashes[0] == hashes[1] else "different", flush=True)
            state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
