"""A project of small models in which every stage has what is hard to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.projects import pairs, write_project, write_rows

TRAINED = ("sft", "reward", "rft", "dpo", "kto", "ppo")
"""Stages that train, which also run on two processes."""
STAGES = ("sft", "reward", "rank", "rft", "dpo", "kto", "gate", "ppo", "evaluate")
"""All, in the order in which they run."""

_ADAPTER = {"r": 4, "lora_dropout": 0.1}
_EPOCHS = {
    "num_train_epochs": 3, "save_steps": 3, "save_total_limit": 2, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "disable_tqdm": True,
}  # fmt: skip
"""Six steps an epoch, each of four micro-batches of like length; checkpoints within an epoch and at the end of one."""
_JUDGED = {"checkpoint_judge": "count", "select": "best"}
_PPO = {
    "max_steps": 12, "save_steps": 2, "save_total_limit": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
    "gradient_accumulation_steps": 2, "num_ppo_epochs": 2, "max_new_tokens": 8, "normalize_samples": 8,
    "kl_target": 1.0, "kl_horizon": 20.0, "truncated": "score", "log_completions": 2, "disable_tqdm": True,
    "rewards": {"reward": 1.0, "long": 0.5},
}  # fmt: skip
"""Six rollouts with an adapting KL coefficient and two normalised rewards."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "sft": _EPOCHS,
    "reward": {**_EPOCHS, "max_steps": 16, "save_steps": 4},  # ends within an epoch
    "rank": {"keep": "best", "samples": 2, "max_new_tokens": 8, "sampling_batch_size": 2, "truncated": "score"},
    "rft": _EPOCHS,
    "dpo": {**_EPOCHS, **_JUDGED},
    "kto": {**_EPOCHS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "ppo": {**_PPO, **_JUDGED},
}


def overrides(stage: str, processes: int) -> tuple[str, ...]:
    """What differs from the YAML on so many processes: on two, a step is as large as on one."""
    if processes == 1 or stage not in TRAINED:
        return ()
    settings = _SETTINGS[stage]
    return (f"stages.{stage}.gradient_accumulation_steps={settings['gradient_accumulation_steps'] // processes}",)


def make_base(folder: Path) -> None:
    """Write a random Llama of two layers with dropout, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from rlhf.models.scratch import train_tokenizer

    texts = [text for row in pairs() for text in row.values()]
    tokenizer = train_tokenizer(iter(texts), 400)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, attention_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_settings(folder: Path, base: Path, rows: int = 30) -> Path:
    """The project's YAML; each run of it has a name of its own.

    Args:
        folder: Where it goes, and below it the runs.
        base: The base model.
        rows: Preference pairs; of 30, about 20 are trained on.
    """
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in pairs(40)[34:]])
    data = {"source": str(folder / "pairs.jsonl")}
    sets = {"demonstrations": data, "preferences": {**data, "holdout": 0.3}, "prompts": {"source": str(prompts)}}
    path = write_project(
        folder, base, pairs(rows), data=sets, model={"name_or_path": str(base), "adapter": _ADAPTER}, stages=_SETTINGS,
        gate="warn", evaluate={"prompts": 4, "samples": 2, "max_new_tokens": 8, "batch_size": 4},
        rewards={"long": {"function": "judge.py:score"}, "count": {"function": "judge.py:words"}},
    )  # fmt: skip
    with (folder / "judge.py").open("a", encoding="utf-8") as file:
        file.write(
            "\n\ndef words(prompts, completions, **columns):\n"
            "    return [float(len(str(completion).split())) for completion in completions]\n"
        )
    return path
