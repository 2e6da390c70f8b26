"""Writes and reads GGUF files with the library of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rlhf.errors import UserError
from rlhf.export.gguf.architectures import ARCHITECTURES
from rlhf.export.gguf.tokenizer import Vocabulary

_KEPT = "position_embd.weight"
"""What llama.cpp adds to activations, and wants as float32."""
_TABLES = ("token_embd.weight", "output.weight")


def write(path: Path, model: PreTrainedModel, vocabulary: Vocabulary, kind: str, name: str) -> list[str]:
    """Write a model as a GGUF file.

    Matrices are of the kind asked for, everything else is float32. Where 4 bits are asked for, the embeddings and the
    head get 8, as they lose the most. A matrix whose rows no block fits is float16.

    Args:
        path: The file.
        model: A causal language model, of an architecture that is not `unfit`.
        vocabulary: Its tokenizer.
        kind: F16, Q8_0 or Q4_0.
        name: What to call the model in the file.

    Returns:
        Names of the matrices whose rows no block fits.
    """
    import gguf

    config: Any = model.config
    known = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, known.name)
    writer.add_name(name)
    writer.add_file_type(_file_type(kind))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in known.metadata(config).items():
        key = f"{known.name}.{key}"
        if isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    _add_vocabulary(writer, vocabulary)
    unfitting = []
    for tensor, values in tensors(model).items():
        wanted = _kind_of(tensor, values, kind)
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            unfitting.append(tensor)
            wanted = gguf.GGMLQuantizationType.F16
        writer.add_tensor(tensor, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfitting


def tensors(model: PreTrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    """A model's weights by GGUF's names, as the file has them; a head that is tied to the embeddings is not among them.

    Raises:
        UserError: A weight has no name there.
    """
    import gguf

    config: Any = model.config
    known = ARCHITECTURES[config.model_type]
    kind = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == known.name)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    tensors_by_name = {}
    for own, parameter in model.state_dict().items():
        if own == "lm_head.weight" and tied:
            continue
        tensor = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if tensor is None:
            raise UserError(f"--format gguf: {type(model).__name__} has a weight {own}, which GGUF has no name for")
        tensors_by_name[tensor] = known.tensor(tensor, parameter.detach().to(torch.float32).numpy(), config)
    return tensors_by_name


def _file_type(kind: str) -> int:
    import gguf

    return int(gguf.LlamaFileType[f"MOSTLY_{kind}"])


def _kind_of(tensor: str, values: np.ndarray[Any, Any], kind: str) -> Any:
    import gguf

    if values.ndim < 2 or tensor == _KEPT:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType["Q8_0" if kind == "Q4_0" and tensor in _TABLES else kind]


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for kind, number in vocabulary.special.items():
        getattr(writer, f"add_{kind}_token_id")(number)
    for kind, adds in vocabulary.adds.items():
        getattr(writer, f"add_add_{kind}_token")(adds)
    writer.add_add_space_prefix(False)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def read_vocabulary(path: Path) -> Vocabulary:
    """The tokenizer that a file has."""
    import gguf

    fields = gguf.GGUFReader(path).fields

    def value(key: str, otherwise: Any = None) -> Any:
        field = fields.get(f"tokenizer.{key}")
        return otherwise if field is None else field.contents()

    special = {kind: value(f"ggml.{key}_token_id")
               for kind, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}  # fmt: skip
    return Vocabulary(
        value("ggml.pre"), value("ggml.tokens"), value("ggml.token_type"), value("ggml.merges"),
        {kind: number for kind, number in special.items() if number is not None},
        {kind: value(f"ggml.add_{kind}_token", False) for kind in ("bos", "eos")}, value("chat_template"),
    )  # fmt: skip
