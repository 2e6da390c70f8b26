"""Started by accelerate on several CPU processes: stages that run whole, and stages that stop and go on.

`scale_child.py FOLDER STAGE …`; the main process writes what becomes of each to FOLDER/outcomes-STAGE.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import Trainer

from rlhf import processes
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.pipeline.execute import quiet_environment, run_stage

ENVIRONMENT = dict(os.environ)
"""That of the launch: the ppo stage takes its sharding out of accelerate's hands."""


class Stop:
    """Ends a training in front of the update of a step, once."""

    def __init__(self, step: int) -> None:
        self.armed = False
        original: Callable[..., object] = Trainer.training_step

        def training_step(trainer: Trainer, *args: object, **kwargs: object) -> object:
            if self.armed and trainer.state.global_step == step - 1:
                self.armed = False
                raise KeyboardInterrupt
            return original(trainer, *args, **kwargs)

        Trainer.training_step = training_step  # type: ignore[method-assign,assignment]


def outcome(project: ProjectConfig, stage: str) -> str:
    """Run a stage: `ok`, or the line that refuses it."""
    os.environ.update(ENVIRONMENT)
    try:
        run_stage(project, stage)
    except UserError as error:
        return str(error)
    return "ok"


def main() -> None:
    """Run the stages."""
    folder = Path(sys.argv[1])
    quiet_environment()
    state = processes.state()
    stop = Stop(3)
    whole, stopped = (load_project(folder / "project.yaml", [f"name={name}"]) for name in ("whole", "stopped"))
    outcomes = {}
    for stage in sys.argv[2:]:
        outcomes[stage] = {"train": outcome(whole, stage)}
        if outcomes[stage]["train"] == "ok":
            stop.armed = True
            os.environ.update(ENVIRONMENT)
            try:
                run_stage(stopped, stage)
                raise AssertionError(f"{stage} went on to its end")
            except KeyboardInterrupt:
                state.wait_for_everyone()
            outcomes[stage]["resume"] = outcome(stopped, stage)
        state.wait_for_everyone()
        if state.is_main_process:
            (folder / f"outcomes-{stage}.json").write_text(json.dumps(outcomes[stage]))
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
