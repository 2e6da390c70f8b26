"""Checks of a vLLM server that the user has started: whether it is there, and whether it samples as it must."""

from __future__ import annotations

from typing import Any

from rlhf.errors import SamplerFailed
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.client import Client, Refused
from rlhf.policies.vllm.limits import OLDEST, largest_rank, room_for

_TIMEOUT = 5.0
"""Seconds for each answer, before anything trains."""


def absent_or_checked(settings: SamplingSettings, adapter: dict[str, Any] | None) -> str | None:
    """Check the server of `vllm_url` before anything trains; it may be started later.

    Args:
        settings: How the policy is sampled.
        adapter: Of the policy; None where all weights are trained, or none.

    Returns:
        Why nothing answers there now; None where a server does that samples as it must.

    Raises:
        SamplerFailed: What answers is no vLLM server, or samples otherwise.
    """
    client = Client(settings.vllm_url or "")
    try:
        client.call("GET", "/health", timeout=_TIMEOUT, attempts=1)
    except Refused:
        raise SamplerFailed(client.line("what answers is no vLLM server: it has no /health")) from None
    except SamplerFailed as error:
        return str(error)
    served_model(client, settings, 0 if adapter is None else largest_rank(adapter), _TIMEOUT)
    return None


def served_model(client: Client, settings: SamplingSettings, rank: int, timeout: float) -> str:
    """Check that a server samples as it must.

    Args:
        client: Asks it.
        settings: How the policy is sampled.
        rank: Of the adapter that it is to serve; 0 for none.
        timeout: Seconds for each answer.

    Returns:
        The name of its model.

    Raises:
        SamplerFailed: It does not, or does not say.
    """
    try:
        config = client.call("GET", "/server_info?config_format=json", timeout=timeout)["vllm_config"]
        models = client.call("GET", "/v1/models", timeout=timeout)["data"]
        model = next(each["id"] for each in models if not each.get("parent"))
        mode, length = config["model_config"]["logprobs_mode"], config["model_config"]["max_model_len"]
        room = (config["lora_config"] or {}).get("max_lora_rank", 0)
    except Refused as error:
        if error.status != 404:
            raise
        raise SamplerFailed(
            client.line("it does not say how it was started: start it with VLLM_SERVER_DEV_MODE=1")
        ) from None
    except (KeyError, TypeError, StopIteration):
        oldest = ".".join(map(str, OLDEST))
        raise SamplerFailed(client.line(f"it does not answer as a vLLM server of version {oldest} or newer")) from None
    if mode != "processed_logprobs":
        raise SamplerFailed(client.line(f"start it with --logprobs-mode processed_logprobs, not {mode}"))
    if (wanted := settings.max_length) is not None and length < wanted:
        raise SamplerFailed(client.line(f"it takes {length} tokens, and max_length is {wanted} (--max-model-len)"))
    if room < rank:
        raise SamplerFailed(client.line(f"start it with --enable-lora --max-lora-rank {room_for(rank)}"))
    return str(model)
