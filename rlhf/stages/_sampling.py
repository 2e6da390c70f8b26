"""What the stages share in which a policy samples: whether its sampler can, said before it has to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rlhf import processes
from rlhf.errors import UserError
from rlhf.workflow import StageContext

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rlhf.policies.settings import SamplingSettings


def settle_sampler(
    context: StageContext, settings: SamplingSettings, adapter: dict[str, Any] | None, config: PretrainedConfig
) -> None:
    """Find the paths that the settings name, in place, and check that their sampler can sample the policy.

    A server that the settings name is asked how it was started. Where none answers yet, a line says so and the stage
    goes on: it may be started while earlier stages train.

    Args:
        context: The stage.
        settings: How the policy is sampled.
        adapter: Of the policy; None where all weights are trained, or none.
        config: Of its model.

    Raises:
        UserError: It cannot.
    """
    from rlhf.errors import SamplerFailed
    from rlhf.policies.vllm.limits import vllm_problem
    from rlhf.policies.vllm.running import absent_or_checked

    for name in ("vllm_python", "vllm_folder"):
        if (path := getattr(settings, name)) is not None:
            setattr(settings, name, str(context.project.resolve(path).absolute()))
    if (problem := vllm_problem(settings, adapter, config)) is not None:
        raise UserError(f"stages.{context.name}.{problem}")
    if settings.sampler != "vllm" or settings.vllm_url is None:
        return
    field = f"stages.{context.name}.vllm_url"
    try:
        absent = absent_or_checked(settings, adapter)
    except SamplerFailed as error:
        raise UserError(f"{field}: {str(error).removeprefix('sampler: ')}") from None
    if absent is not None and processes.is_main():
        print(f"{field}: warning: no server answers yet: {absent.removeprefix('sampler: ')}", file=sys.stderr)
