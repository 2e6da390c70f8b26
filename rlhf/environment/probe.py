"""Imports the libraries and asks torch for its devices, in a process of its own: an import can end the process.

`python -m rlhf.environment.probe NAME…` prints a JSON object a line: for each library its import's problem or none, and
the devices once torch is imported.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def devices() -> list[dict[str, Any]]:
    """The accelerators that torch sees: name, memory in bytes, and whether they compute in bf16; none on a CPU."""
    import torch

    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    module: Any = torch.get_device_module(kind)
    return [_device(module, str(kind), index) for index in range(torch.accelerator.device_count())]


def _device(module: Any, kind: str, index: int) -> dict[str, Any]:
    """One accelerator; what its kind does not tell is None."""
    properties = module.get_device_properties(index) if hasattr(module, "get_device_properties") else None
    supported = getattr(module, "is_bf16_supported", None)
    return {
        "kind": kind,
        "name": getattr(properties, "name", kind),
        "memory_bytes": getattr(properties, "total_memory", None),
        "free_bytes": module.mem_get_info(index)[0] if hasattr(module, "mem_get_info") else None,
        "bf16": supported() if supported is not None else None,
    }


def built() -> dict[str, Any]:
    """What torch was built for, and how many threads it computes with."""
    import torch

    return {"cuda": torch.version.cuda, "hip": torch.version.hip, "threads": torch.get_num_threads()}


def main() -> None:
    """Print what was found, each line as soon as it is known."""
    for name in sys.argv[1:]:
        result: dict[str, Any] = {"package": name, "problem": None}
        try:
            importlib.import_module(name)
            if name == "torch":
                result |= {"devices": devices(), "built": built()}
        except BaseException as error:  # whatever a broken library raises, an exit included
            lines = str(error).strip().splitlines() or [""]
            result["problem"] = f"{type(error).__name__}: {lines[0]}"
        print(f"\n{json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
