"""The rft stage: supervised training once more, on the best of a policy's own replies.

Sources: rejection sampling fine-tuning in Touvron et al., "Llama 2" (2023), section 3.2.3; Dong et al., "RAFT: Reward
rAnked FineTuning for Generative Foundation Model Alignment" (2023).
"""

from __future__ import annotations

from dataclasses import replace

from rlhf.config.project import ProjectConfig
from rlhf.stages import sft
from rlhf.workflow import rows_from


def check(project: ProjectConfig, name: str) -> str | None:
    """There are best replies to imitate."""
    if rows_from(project, name) is None:
        return f"stages.{name}: imitates the best of a policy's replies; add rank: {{keep: best}} to stages:"
    return None


STAGE = replace(
    sft.STAGE,
    name="rft",
    order=37,
    label="RFT",
    method="Supervised fine-tuning on the best of its own replies (rejection sampling)",
    rows_of=("rank",),
    first_round=False,
    follows=("sft",),
    check=check,
)
