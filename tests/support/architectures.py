"""Every causal architecture that transformers builds, at a size of a few thousand weights: what runs, and how.

`python -m tests.support.architectures` writes docs/architectures.md.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf.errors import UserError
from rlhf.policies.sampler import Batching, TransformersSampler
from rlhf.policies.sampling_check import batching_of
from rlhf.prefix_sharing.fold import fold
from rlhf.prefix_sharing.head import completion_log_probs
from rlhf.prefix_sharing.layout import lay_out
from rlhf.prefix_sharing.support import folding_check, why_not, widest
from tests.support.models import strengthened

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, WINDOW, POSITIONS = 64, 12, 64
_MOST_WEIGHTS = 8_000_000
PAD, TOLERANCE = 1, 1e-3
PROMPTS = [[5, 9, 30], [8, 12, 44, 45, 46, 60, 61], [7, 3], [*range(15, 33)], [9, 9, 9], [40, 41, 42]]

_WINDOWS = r"window(_size|_len)?$|local_attention$|chunk_size$|chunk_length$|index_topk$|block_size$"
_SIZES: list[tuple[str, int]] = [
    (r"vocab_size$|^vocab_size_per_layer|^n_tokens$", VOCABULARY),
    (_WINDOWS, 0),
    (
        r"max_position_embeddings|^n_positions$|^n_ctx$|max_seq_len|^max_target_positions$|^max_source_positions$",
        POSITIONS,
    ),
    (r"(num|n)_?(key_value|kv|query_groups)_heads$|num_kv_heads|num_key_value_heads|num_query_groups", 2),
    (r"mamba_d_head$|mamba_headdim$", 16),
    (r"d_head$", 8),
    (r"heads?$|attention_heads$|num_.*_heads", 4),
    (r"rotary_dim$", 4),
    (r"head_dim$|head_size$|_dim_per_head|kv_channels|^d_kv$", 8),
    (r"lora_rank$|_rank$", 16),
    (r"num_layers|n_layers?$|_layers$|^num_hidden_layers$", 2),
    (r"experts_per_tok|_top_?k$|^top_?k$|^moe_k$", 2),
    (r"shared_experts$", 1),
    (r"^n_group$|^topk_group$|^num_expert_group", 1),
    (r"experts$", 4),
    (r"intermediate|ffn|inner|_mlp_|^d_ff|mlp_dim", 48),
    (r"state_size|^ssm_.*size|d_state$", 8),
    (
        r"hidden_size|^d_model$|^n_embd$|embed_dim$|embedding_size$|lru_width|word_embed_proj_dim|^dim$|_dim$|^hidden_dim",
        32,
    ),
]
"""Sizes of settings by their names; the first pattern that matches counts, other settings stay as they are."""

_OWN: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "gemma4_unified_assistant": {"num_kv_shared_layers": 0},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 16, "qk_head_dim": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 12,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds": False, "hash_seed": 0},
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "moe"],
        "num_hidden_layers": 3,
        "n_groups": 1,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {
        "layer_types": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "num_mem_blocks": 1,
        "mamba_ngroups": 1,
    },
    "xmod": {"default_language": "en_XX"},
}


def shrunk(name: str, windows: int, settings: dict[str, Any]) -> PretrainedConfig:
    """An architecture's config with small sizes and one layer of each kind that it has."""
    return _shrunk(type(AutoConfig.for_model(name))(), name, windows, settings)


def _shrunk(default: PretrainedConfig, name: str, windows: int, settings: dict[str, Any]) -> PretrainedConfig:
    given: dict[str, Any] = {}
    for key, value in vars(default).items():
        if key in _OWN.get(name, {}):
            continue
        if isinstance(value, PretrainedConfig):
            given[key] = _shrunk(value, key, windows, settings).to_dict()
        elif isinstance(value, bool):
            if key in ("use_sliding_window", "is_decoder"):
                given[key] = True
        elif isinstance(value, int) and not key.startswith("_"):
            if key.endswith(("_token_id", "token_index")):
                given[key] = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}.get(key, VOCABULARY - 1)
                continue
            small = next((size or windows for pattern, size in _SIZES if re.search(pattern, key)), value)
            if 0 < small < value:
                given[key] = small
    if given.get("num_key_value_heads") and hasattr(default, "kv_lora_rank"):
        given["num_key_value_heads"] = given["num_attention_heads"]
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    derived = {"layer_types", (getattr(default, "attribute_map", None) or {}).get("layer_types")}
    if kinds and not any(isinstance(getattr(type(default), key or "", None), property) for key in derived):
        given["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        given["num_hidden_layers"] = len(given["layer_types"])
    if "use_sliding_window" in given:  # in every layer but the first
        given.pop("layer_types", None)
        given["max_window_layers"] = 1
    given.update(_OWN.get(name, {}))
    given.update({key: value for key, value in settings.items() if hasattr(default, key)})
    return type(default)(**given)


def built(name: str, windows: int = WINDOW, **settings: Any) -> PreTrainedModel:
    """A model of an architecture, its weights drawn from one seed.

    Raises:
        Exception: Of any kind, if a small model cannot be made.
    """
    config = shrunk(name, windows, settings)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if count > _MOST_WEIGHTS:
        raise ValueError(f"{count / 1e6:.0f} million weights at the smallest sizes tried")
    set_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@dataclass(frozen=True)
class Row:
    """What became of an architecture."""

    name: str
    sampled: str
    shares: str

    @property
    def cells(self) -> list[str]:
        """The cells of its row in the table."""
        return [f"`{self.name}`", self.sampled, self.shares]


SAMPLED = {
    Batching.MIXED: "yes",
    Batching.EQUAL: "yes, prompts of one length at a time",
    Batching.WHOLE: "yes, prompts of one length at a time, each reply with its prompt",
}


def examined(name: str) -> Row:
    """How an architecture is sampled and whether it shares prompts, both compared with the plain forward pass.

    Raises:
        AssertionError: It gives other numbers although it was not refused.
    """
    try:
        model, roomy = (strengthened(built(name, size), 4.0) for size in (WINDOW, POSITIONS))
        _plain(model, [5, 6, 7])
    except Exception as error:  # whatever a config that was not made for it raises
        return Row(name, f"not built small: {_line(error)}", "")
    return Row(name, _sampled(model, roomy), _shares(model))


def _sampled(model: Any, roomy: Any) -> str:
    """How it is sampled within a window and beyond it, or only within."""
    try:
        batching = batching_of(model)
    except UserError as error:
        return f"no: {_line(str(error).partition('cannot be sampled: ')[2].rpartition('; a policy')[0])}"
    if _sampling_gap(model, batching) < TOLERANCE:
        return SAMPLED[batching]
    gap = _sampling_gap(roomy, batching)
    assert gap < TOLERANCE, f"{type(model).__name__} samples {gap:.2g} nats from its forward pass"
    return f"{SAMPLED[batching]}, up to the window (beyond it, with a cache, it gives other numbers than without)"


@torch.no_grad()
def _sampling_gap(model: Any, batching: Batching) -> float:
    """Two completions per prompt, prompts of different lengths, rows beyond every window, some ending early."""
    sampler = TransformersSampler(model, range(0, VOCABULARY, 9), PAD, 16, batching=batching)
    seeds = [[10 * row + sample for sample in range(2)] for row in range(len(PROMPTS))]
    sampled = zip(PROMPTS, sampler(PROMPTS, seeds), strict=True)
    completions = [(prompt, completion) for prompt, group in sampled for completion in group]
    assert len({len(completion.ids) for _, completion in completions}) > 2
    gaps = [
        _plain(model, [*prompt, *drawn.ids])[len(prompt) - 1 : -1].gather(1, torch.tensor(drawn.ids)[:, None])[:, 0]
        - torch.tensor(drawn.log_probs)
        for prompt, drawn in completions
    ]
    return float(torch.cat(gaps).abs().max())


@torch.no_grad()
def _shares(model: Any) -> str:
    """Compare pairs of rows, folded and not, within a window and beyond it, and completions as PPO lays them out."""
    reasons = []
    for length in (WINDOW // 2, 3 * WINDOW):
        prompts = [[(7 * at + row) % 60 for at in range(length)] for row in (5, 6)]
        pairs = torch.tensor([[*prompt, *([reply] * (length // 2))] for reply in (20, 30) for prompt in prompts])
        with contextlib.redirect_stderr(io.StringIO()):
            expected = model(input_ids=pairs, use_cache=False).logits
            with fold(model) as folded:
                gap = (model(input_ids=pairs, use_cache=False).logits - expected).abs().max()
        assert gap < TOLERANCE * expected.abs().max(), f"{type(model).__name__} is {gap:.2g} off where it is folded"
        reasons.append(folded.reason or next(iter(folded.said), None))
    reason = why_not(model) or folding_check(model.base_model)
    if reason is None:
        lay = [lay_out(PROMPTS[:3], [[[9, 8, 7], [20] * 12, [4, 5]]] * 3, PAD, most) for most in (widest(model), 0)]
        ours, theirs = (completion_log_probs(model, folded, 1.0)[0] for folded in lay)
        assert torch.allclose(ours, theirs, atol=TOLERANCE), f"{type(model).__name__} is off where replies share a row"
    within, beyond = reasons
    if within is None and beyond is not None:
        return f"within `{beyond.rpartition('(')[2].rstrip(')')}`"
    return "yes" if beyond is None else f"no: {_line(beyond)}"


def _plain(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of a row by itself, [L, V]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


def _line(reason: Exception | str) -> str:
    """A reason for a cell of the table, without numbers that differ from machine to machine."""
    line = " ".join(map(str.strip, str(reason).strip().splitlines()[:2])) or type(reason).__name__
    line = re.sub(r"\d+(\.\d+)?(e-?\d+)?(%| nats)", "…", line).replace("|", "/")
    return line if len(line) <= 120 else line[:117] + "…"


_INTRO = """# Architectures

The table has the {count} causal architectures that transformers {version} builds, each as a model of a few thousand
random weights with a layer of each kind and windows of a few tokens. `make architectures` writes it, and fails if an
architecture no longer runs that did before.

* **Sampled**: the log-probabilities of sampled completions are those of a plain forward pass of each row by itself.
  There are two completions to a prompt, prompts have different lengths, and some completions end early. An architecture
  that cannot be sampled is refused before the first policy is trained.
* **Shares prompts**: with prefix sharing the model gives the same numbers as without, also in rows longer than its
  windows. An architecture that cannot share runs without; `within` a window means that rows share up to that length.

{sampled} are sampled, {shared} share prompts.

| Architecture | Sampled | Shares prompts |
|---|---|---|
"""


def table(rows: Sequence[Row]) -> str:
    """The page, in Markdown."""
    counts = [
        sum(row.sampled.startswith("yes") for row in rows),
        sum(row.shares.startswith(("yes", "within")) for row in rows),
    ]
    intro = _INTRO.format(count=len(rows), version=transformers.__version__, sampled=counts[0], shared=counts[1])
    return intro + "".join(f"| {' | '.join(row.cells)} |\n" for row in rows)


def read_table(text: str) -> dict[str, list[str]]:
    """The other cells of each architecture's row."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    (Path(__file__).parents[2] / "docs/architectures.md").write_text(table([examined(name) for name in NAMES]), "utf-8")
