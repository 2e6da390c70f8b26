"""One run of TRL's PPO trainer; started by ppo.py with the interpreter of an environment that has trl 1.12.

usage: python ppo_trl.py FOLDER JOB        JOB: JSON, see `ppo.Job`
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

from setting import read_prompts, sequences, timed_training


def make_trainer(folder: Path, job: dict[str, Any]) -> Any:
    """TRL's trainer on four models, or on a policy with LoRA that is its own reference, and two more."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    frozen = torch.bfloat16 if job["bf16"] else torch.float32
    policy = LlamaForCausalLM.from_pretrained(folder, dtype=frozen if job["lora"] else torch.float32)
    reward = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=frozen)
    critic = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if job["lora"] else None
    args = PPOConfig(
        str(folder / "trl"), per_device_train_batch_size=job["per_device"],
        gradient_accumulation_steps=job["batch"] // job["per_device"], num_ppo_epochs=4, num_mini_batches=1,
        total_episodes=job["episodes"] + job["drop"] * job["batch"], response_length=job["reply"], report_to=[],
        use_cpu=job["device"] == "cpu", bf16=job["bf16"],
        learning_rate=1e-5, stop_token="eos", num_sample_generations=0, save_strategy="no",
        gradient_checkpointing=False, local_rollout_forward_batch_size=job["forward"], missing_eos_penalty=1.0,
        seed=job["seed"],
    )  # fmt: skip
    rows = [{"input_ids": row["ids"]} for row in read_prompts(folder)]
    return PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, reward_model=reward, value_model=critic,
        ref_model=None if lora else LlamaForCausalLM.from_pretrained(folder, dtype=frozen), peft_config=lora,
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip


def count_replies(lengths: list[int]) -> None:
    """Have the trainer's own cutting of replies at the end token note how long they are."""
    from trl.experimental.ppo import ppo_trainer

    cut = ppo_trainer.truncate_response

    def counted(stop: int, pad: int, replies: Any) -> Any:
        shortened = cut(stop, pad, replies)
        lengths.extend((shortened != pad).sum(1).tolist())
        return shortened

    ppo_trainer.truncate_response = counted


def main() -> None:
    """Run, and print one line of JSON last."""
    import torch

    folder, job = Path(sys.argv[1]), json.loads(sys.argv[2])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    trainer = make_trainer(folder, job)
    lengths: list[int] = []
    count_replies(lengths)
    result = timed_training(trainer, job["drop"])
    assert len(lengths) == job["episodes"] + job["drop"] * job["batch"], (len(lengths), job)
    reply = sum(lengths) / len(lengths)
    print(json.dumps(result | {"reply_length": reply, "sequences": sequences(folder, 1, reply)}))


if __name__ == "__main__":
    main()
