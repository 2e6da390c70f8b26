"""GGUF for llama.cpp: float16, or blocks of 32 weights with a scale in 8 or 4 bits; one file with the tokenizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.artifacts.rounds import run_name
from rlhf.errors import UserError
from rlhf.export.formats import Format
from rlhf.export.gguf import architectures, files, tokenizer
from rlhf.models.load import model_config
from rlhf.models.tasks import CAUSAL_LM
from rlhf.publish.build import Finished

_FILE = "model.gguf"
_KINDS = {"f16": "float16", "q8_0": "int8", "q4_0": "4bit"}
"""Kind of the weights -> what their rounding may change."""


def check(whole: Finished) -> None:
    """Check that architecture and tokenizer of a stage can be written exactly.

    Raises:
        UserError: They cannot.
    """
    opened, where = whole.opened, whole.run_dir / whole.stage
    if opened.kind != "policy" or opened.task is not CAUSAL_LM:
        raise UserError(f"{where}: --format gguf takes a causal language model; merged and int8 take any other")
    config = model_config(opened.source)
    problem = architectures.unfit(config) or tokenizer.unfit(opened.tokenizer)
    if problem is not None:
        raise UserError(f"{where}: {problem}; merged and int8 take any model")


def write(kind: str, model: PreTrainedModel, whole: Finished, folder: Path) -> list[str]:
    """Write the file, and read its tokenizer back."""
    own: PreTrainedTokenizerBase = whole.opened.tokenizer
    embeddings: Any = model.get_input_embeddings()
    name = f"{run_name(whole.run_dir)}-{whole.stage}"
    path = folder / _FILE
    vocabulary = tokenizer.vocabulary(own, embeddings.num_embeddings)
    unfitting = files.write(path, model, vocabulary, kind.upper(), name)
    tokenizer.check_round_trip(files.read_vocabulary(path), own, [own.chat_template or ""])
    model.config.save_pretrained(folder)
    notes = [f"The tokenizer in the file splits text as llama.cpp's {vocabulary.split!r} does, and gave the same ids."]
    if unfitting:
        notes.append(
            f"{len(unfitting)} matrices are float16, since blocks of 32 do not fit their rows: {unfitting[0]} is the "
            "first."
        )
    return notes


FORMATS = tuple(
    Format(
        f"gguf-{kind}", f"GGUF weights ({kind.upper()})", partial(write, kind), precision=precision,
        arguments={"gguf_file": _FILE}, packages=("gguf",), check=check, engine="llama.cpp",
    )
    for kind, precision in _KINDS.items()
)  # fmt: skip
