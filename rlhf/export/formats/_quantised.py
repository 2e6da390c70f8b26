"""Has transformers quantise a model while it loads it, and writes what it loaded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from rlhf.errors import UserError, reason
from rlhf.publish.build import Finished

_SCRATCH = ".float"


def write_quantised(
    model: PreTrainedModel, whole: Finished, folder: Path, quantization: Any, kept: Sequence[str]
) -> list[str]:
    """Write a model quantised.

    Args:
        model: The float model.
        whole: Its stage.
        folder: Where it goes; it holds the float weights for a while.
        quantization: A quantisation config of transformers.
        kept: Modules that it leaves as they are.

    Returns:
        What a reader has to know, a sentence each.

    Raises:
        UserError: The library cannot quantise this model.
    """
    scratch = folder / _SCRATCH
    model.save_pretrained(scratch)
    try:
        quantised = whole.task.model_class.from_pretrained(
            str(scratch), quantization_config=quantization, dtype=model.dtype, device_map="cpu", use_safetensors=True,
            trust_remote_code=False,
        )  # fmt: skip
        quantised.save_pretrained(folder)
    except Exception as error:  # a library raises anything at an architecture that it does not expect
        stage = whole.run_dir / whole.stage
        raise UserError(f"{stage}: {type(model).__name__} cannot be quantised: {reason(error)}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [f"Embeddings, norms and {', '.join(kept)} keep their type."]
