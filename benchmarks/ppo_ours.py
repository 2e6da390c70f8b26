"""One run of this project's PPO trainer; started by ppo.py.

usage: python ppo_ours.py FOLDER JOB       JOB: JSON, see `ppo.Job`
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from peft import LoraConfig, get_peft_model
from ppo_changes import CHANGES
from setting import read_prompts, sequences, timed_training
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from rlhf.models.roles import CRITIC, REWARD, Roles
from rlhf.policies.causal_lm import CausalLMPolicy, PromptRow
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.compose import Rewards
from rlhf.rewards.model import score_groups


def shared_roles(folder: Path, critic: str, bf16: bool) -> Roles:
    """One frozen base with an adapter each for policy, reward and maybe the critic."""
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if bf16 else torch.float32)
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(base, config)
    if critic == "separate":
        policy.add_adapter(CRITIC, config)
    policy.add_adapter(REWARD, config)
    width = base.config.hidden_size
    return Roles(policy, nn.Linear(width, 1), reward_head=nn.Linear(width, 1))


def separate_roles(folder: Path) -> Roles:
    """Policy, reference and critic, each a model of its own."""
    policy, reference = (LlamaForCausalLM.from_pretrained(folder) for _ in range(2))
    return Roles(policy, nn.Linear(policy.config.hidden_size, 1), LlamaModel.from_pretrained(folder), reference)


def separate_reward(folder: Path, tokenizer: Any, size: int) -> Any:
    """A reward model of its own, as a function of text: what `rlhf.rewards.model.RewardModel` does behind its loading.

    Args:
        folder: Where its weights are.
        tokenizer: Its tokenizer.
        size: Sequences scored at once.
    """
    model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1).eval().requires_grad_(False)

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        rows = tokenizer([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])[
            "input_ids"
        ]
        rows = [[*row, tokenizer.eos_token_id] for row in rows]
        return [score for (score,) in score_groups(model, [[row] for row in rows], size)]

    return reward


def make_trainer(folder: Path, job: dict[str, Any]) -> PPOTrainer:
    """The trainer as the ppo stage would set it up."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    torch.manual_seed(0)
    roles = shared_roles(folder, job["critic"], job["bf16"]) if job["lora"] else separate_roles(folder)
    reward = None if job["lora"] else separate_reward(folder, tokenizer, job["forward"])
    args = PPOConfig(
        str(folder / "ours"), per_device_train_batch_size=job["per_device"],
        gradient_accumulation_steps=job["batch"] // job["per_device"], per_device_eval_batch_size=job["forward"],
        num_ppo_epochs=4, num_mini_batches=1, max_steps=(job["drop"] + job["episodes"] // job["batch"]) * 4,
        samples_per_prompt=job["samples"], max_new_tokens=job["reply"], normalize_samples=0, truncated="score",
        learning_rate=1e-5, report_to="none", use_cpu=job["device"] == "cpu", save_strategy="no",
        bf16=job["bf16"] and not job["lora"], logging_steps=4, critic=job["critic"],
        seed=job["seed"],
    )  # fmt: skip
    assert not args.check(), args.check()
    prompts = [PromptRow(row["ids"], row["text"], {}) for row in read_prompts(folder, job["samples"])]
    policy = CausalLMPolicy(roles, tokenizer, args)
    trainer = PPOTrainer(policy, args, prompts, Rewards({"reward": reward}, {"reward": 1.0}))
    if job.get("change"):
        CHANGES[job["change"]](trainer)
    return trainer


def main() -> None:
    """Run, and print one line of JSON last."""
    folder, job = Path(sys.argv[1]), json.loads(sys.argv[2])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    trainer = make_trainer(folder, job)
    result = timed_training(trainer, job["drop"])
    logs = [log for log in trainer.state.log_history if "response/length" in log]
    total = job["episodes"] + job["drop"] * job["batch"]
    assert len(logs) * job["batch"] == logs[-1]["episodes"] == total, (len(logs), logs[-1], job)
    reply = sum(log["response/length"] for log in logs) / len(logs)
    print(json.dumps(result | {"reply_length": reply, "sequences": sequences(folder, job["samples"], reply)}))


if __name__ == "__main__":
    main()
