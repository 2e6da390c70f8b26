"""One run of TRL's trainer of pairs or of ours; started by preference.py.

usage: python preference_run.py FOLDER JOB       JOB: JSON, see `preference.Job`
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from setting import timed_training
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, set_seed


def make_trainer(folder: Path, job: dict[str, Any]) -> Any:
    """The trainer on text pairs, as a user of TRL makes it."""
    pairs = Dataset.from_list(json.loads((folder / "pairs.json").read_text(encoding="utf-8")))
    common = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": job["per_device"],
        "gradient_accumulation_steps": job["step"] // job["per_device"], "max_length": job["max_length"],
        "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "report_to": [], "bf16": job["bf16"],
        "use_cpu": job["device"] == "cpu", "gradient_checkpointing": job["checkpointing"],
        "learning_rate": 1e-4, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    if job["by_length"]:
        common["train_sampling_strategy"] = "group_by_length"
    if job["liger"] and importlib.util.find_spec("liger_kernel"):
        common["use_liger_kernel"] = True
    set_seed(0)
    dpo = job["kind"] == "dpo"
    kind, config = (trl.DPOTrainer, trl.DPOConfig) if dpo else (trl.RewardTrainer, trl.RewardConfig)
    own: dict[str, Any] = {}
    if job["ours"]:
        from rlhf.trl_trainers.dpo import DPOTrainer
        from rlhf.trl_trainers.reward import RewardTrainer
        from rlhf.trl_trainers.speedups import Speedups

        kind = DPOTrainer if dpo else RewardTrainer
        own["speedups"] = Speedups(job["fold"], job["head"], job["buckets"])
    if job["lora"]:
        task = "CAUSAL_LM" if dpo else "SEQ_CLS"
        own["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type=task)
    if dpo:
        model = LlamaForCausalLM.from_pretrained(folder)
    else:
        model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return kind(model, args=config(**common), train_dataset=pairs, processing_class=tokenizer, **own)


def sides(folder: Path, trainer: Any) -> list[tuple[int, int]]:
    """Tokens of each side of each pair, with its prompt, and of its completion."""
    tokenizer, limit = trainer.processing_class, trainer.args.max_length
    found = []
    for pair in json.loads((folder / "pairs.json").read_text(encoding="utf-8")):
        prompt = len(tokenizer(pair["prompt"])["input_ids"])
        for name in ("chosen", "rejected"):
            completion = len(tokenizer(pair[name])["input_ids"]) + 1
            found.append((min(prompt + completion, limit), min(completion, limit)))
    return found


def main() -> None:
    """Run, and print one line of JSON last."""
    folder, job = Path(sys.argv[1]), json.loads(sys.argv[2])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    trainer = make_trainer(folder, job)
    result = timed_training(trainer)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    tokens = [log["num_tokens"] for log in trainer.state.log_history if "num_tokens" in log]
    print(json.dumps(result | {"losses": losses, "tokens": max(tokens), "sides": sides(folder, trainer)}))


if __name__ == "__main__":
    main()
