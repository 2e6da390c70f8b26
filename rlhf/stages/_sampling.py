"""What the stages share in which a policy samples: whether its sampler can, said before it has to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf.errors import UserError
from rlhf.workflow import StageContext

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rlhf.policies.settings import SamplingSettings


def settle_sampler(
    context: StageContext, settings: SamplingSettings, adapter: dict[str, Any] | None, config: PretrainedConfig
) -> None:
    """Find the paths that the settings name, in place, and check that their sampler can sample the policy.

    Args:
        context: The stage.
        settings: How the policy is sampled.
        adapter: Of the policy; None where all weights are trained, or none.
        config: Of its model.

    Raises:
        UserError: It cannot.
    """
    from rlhf.policies.vllm.limits import vllm_problem

    for name in ("vllm_python", "vllm_folder"):
        if (path := getattr(settings, name)) is not None:
            setattr(settings, name, str(context.project.resolve(path).absolute()))
    if (problem := vllm_problem(settings, adapter, config)) is not None:
        raise UserError(f"stages.{context.name}.{problem}")
