"""A PPO trainer on a tiny model and a plain reward, built without a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from rlhf.models.roles import CRITIC, Roles
from rlhf.policies.causal_lm import CausalLMPolicy, PromptRow
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.compose import Rewards

PROMPTS = ["Ada asks about lamp 1.", "Ben", "Cleo wants a kettle and a chair.", "Dov asks.", "Eve", "Fay has a radio",
           "Gus asks about his lamp, his kettle and his chair.", "Hal waits"]  # fmt: skip


def wordy(prompts, completions, **columns) -> list[float]:
    """A reward that differs from reply to reply: the share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def make_roles(base: Path, adapter: bool = True, critic: bool | str = True) -> Roles:
    """Policy, reference and, if wanted, critic: one of its own, or `shared`, a head on the policy."""
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    head = nn.Linear(model.config.hidden_size, 1) if critic else None
    own = critic and critic != "shared"
    if not adapter:
        others = [AutoModelForCausalLM.from_pretrained(base) for _ in range(2)]
        return Roles(model, head, others[0].base_model if own else None, others[1])
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(model, config)
    if own:
        policy.add_adapter(CRITIC, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    return Roles(policy, head)


def make_trainer(
    folder: Path, base: Path, roles: Roles | None = None, function: Any = wordy, sampler: Any = None, **fields: Any
) -> PPOTrainer:
    """A trainer whose rollouts are 8 replies of at most 8 tokens, 2 passes each."""
    settings = {
        "output_dir": str(folder), "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
        "per_device_train_batch_size": 8, "num_ppo_epochs": 2, "max_steps": 4, "learning_rate": 1e-2,
        "adam_epsilon": 1e-5, "max_new_tokens": 8, "normalize_samples": 0, "truncated": "score",
        "missing_eos_penalty": 0.0, "logging_steps": 1, "lr_scheduler_type": "constant", **fields,
    }  # fmt: skip
    args = PPOConfig(**settings)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [PromptRow(tokenizer(text)["input_ids"], text, {"number": number}) for number, text in enumerate(PROMPTS)]
    roles = roles if roles is not None else make_roles(base, critic=args.estimator.needs_values and args.critic)
    policy = CausalLMPolicy(roles, tokenizer, args, sampler)
    return PPOTrainer(policy, args, rows, Rewards({"wordy": function}, {"wordy": 1.0}))


def rollout_rows(trainer: PPOTrainer) -> list[dict[str, float]]:
    """What was logged of each rollout."""
    return [row for row in trainer.state.log_history if "objective/scores" in row]
