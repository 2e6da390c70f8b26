"""Align a language model with preferences: SFT, reward models, DPO and PPO, with evidence that each stage helped.

Importing it switches off the telemetry of the libraries below it, in this process and in those that it starts.
"""

import importlib.util
import logging
import os
import sys

__version__ = "0.1.0"

_NO_TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and with it TRL, transformers and datasets
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",  # TRL imports wandb where it is installed, whether it reports or not
}
os.environ.update(_NO_TELEMETRY)
if (_hub := sys.modules.get("huggingface_hub.constants")) is not None:  # imported before: it has read the environment
    _hub.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]

for _library in ("torchao", "torch.utils._pytree"):
    # transformers imports torchao wherever it is installed, which reports each of its files that is for GPUs
    logging.getLogger(_library).setLevel(logging.ERROR)
if importlib.util.find_spec("bitsandbytes") is not None and "bitsandbytes" not in sys.modules:
    # peft imports it, and on some CPUs it would then run code from the hub, by the package kernels, or warn without
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
