"""The judge of checkpoints that a stage's settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.workflow import StageContext

if TYPE_CHECKING:
    from rlhf.training.candidates import Judge


def checkpoint_judge(context: StageContext) -> Judge | None:
    """What scores a stage's checkpoints, or None where the stage names nothing; only then statistics are imported."""
    if context.settings.checkpoint_judge is None:
        return None
    from rlhf.evaluation.checkpoints import CheckpointJudge

    return CheckpointJudge(context)
