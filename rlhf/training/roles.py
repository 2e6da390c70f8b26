"""The roles of online training: which models they are, and whether the reward model fits on the policy's base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel, TrainingArguments, set_seed

from rlhf.artifacts.open import open_stage
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models.adapters import lora_config, own_part
from rlhf.models.freeze import freeze_parameters
from rlhf.models.heads import score_head
from rlhf.models.load import model_config
from rlhf.models.roles import CRITIC, POLICY, REWARD, Roles
from rlhf.models.tasks import CAUSAL_LM
from rlhf.models.tokenizer import tokenizer_record
from rlhf.rewards.compose import Rewards
from rlhf.rewards.load import OWN_REWARD, load_rewards
from rlhf.training.starting_point import StartingPoint, adapted, starting_policy
from rlhf.workflow import StageContext, rewards_of


class RewardPart(NamedTuple):
    """A reward stage's own update of the base that it shares with the policy."""

    config: LoraConfig
    state: dict[str, torch.Tensor]
    head: nn.Linear


def build_roles(
    context: StageContext,
    start: StartingPoint,
    args: TrainingArguments,
    critic_from: str | None,
    to_shard: bool = False,
) -> Roles:
    """Policy, reference and maybe a critic; the reward adapter too where it fits.

    Args:
        context: The stage.
        start: What it starts from.
        args: Their seed draws the fresh adapters.
        critic_from: What the critic starts from, the `reward` model where that can be, or the `policy`; `shared` for a
            head on the policy's own states; None for no critic.
        to_shard: Whether the weights will be sharded over the processes, of which the main one reads them.

    Raises:
        UserError: A model cannot be loaded, or is not what its stage left.
    """
    base = starting_policy(context, start, to_shard)
    maximised = OWN_REWARD in rewards_of(context.project, context.name)
    folder = (
        context.parents.get(OWN_REWARD) if maximised else None
    )  # another reward's critic must not start as this one
    set_seed(args.seed)
    policy = adapted(base, start, args)
    if start.config.adapter is None:
        return _separate_roles(policy, context, start, critic_from, folder, to_shard)
    part = reward_part(folder, start) if folder is not None else None
    value_head = None
    from_reward = critic_from == "reward" and part is not None
    if part is not None:
        add_adapter(policy, REWARD, part.config, part.state)
    if critic_from is not None:
        value_head = _zero_head(base)
        if part is not None and from_reward:
            add_adapter(policy, CRITIC, part.config, part.state)
            _copy_head(part.head, value_head)
        elif critic_from != "shared":
            critic = lora_config(start.config.adapter, start.task.peft, joined=False)
            critic.modules_to_save = policy.peft_config[POLICY].modules_to_save  # what is whole has no adapter
            policy.add_adapter(CRITIC, critic)
    head = part.head if part is not None else None
    return Roles(policy, value_head, reward_head=head, critic_from_reward=from_reward, freeze=start.freeze)


def reward_part(folder: Path, start: StartingPoint) -> RewardPart | None:
    """A reward stage's adapter as it stands on the policy's base, or None where it does not fit there.

    It fits if the policy is a causal language model, and it is a LoRA adapter on the same base, quantized alike, with
    the same tokenizer, trained from the stage that the policy starts from, under a head that is one linear layer.
    """
    if start.task is not CAUSAL_LM:
        return None
    reward = open_stage(folder)
    source = reward.source
    if source.adapter is None or (source.base, source.revision) != (start.source.base, start.source.revision):
        return None
    if reward.manifest.get("tokenizer") != tokenizer_record(start.processor):
        return None
    if reward.settings.quantization != start.config.quantization:
        return None
    try:
        config, state = own_part(folder, start.source.adapter)
    except ValueError:
        return None
    head = {name: state.pop(name) for name in list(state) if ".lora_" not in name}
    if len({name.rpartition(".")[0] for name in head}) != 1:
        return None
    weights = [tensor for name, tensor in head.items() if name.endswith(".weight")]
    biases = [tensor for name, tensor in head.items() if name.endswith(".bias")]
    if len(weights) != 1 or weights[0].shape[0] != 1:
        return None
    layer = nn.Linear(weights[0].shape[1], 1, bias=bool(biases))
    layer.load_state_dict({"weight": weights[0].float(), **({"bias": biases[0].float()} if biases else {})})
    config.task_type, config.modules_to_save, config.inference_mode = start.task.peft, None, False
    return RewardPart(config, state, layer)


def add_adapter(policy: PeftModel, name: str, config: LoraConfig, state: dict[str, torch.Tensor]) -> None:
    """Put trained LoRA weights on a model under a name.

    Raises:
        UserError: They are not for this model.
    """
    policy.add_adapter(name, config)
    left: Any = set_peft_model_state_dict(policy, state, adapter_name=name)
    if left.unexpected_keys:
        raise UserError(f"the reward model's adapter has weights for {left.unexpected_keys[0]}, which the policy lacks")


def _separate_roles(
    base: PreTrainedModel,
    context: StageContext,
    start: StartingPoint,
    critic_from: str | None,
    folder: Path | None,
    to_shard: bool,
) -> Roles:
    """All weights trained: the reference is a second copy, the critic a third model."""
    reference = starting_policy(context, start, to_shard)
    if critic_from is None:
        return Roles(base, reference=reference)
    value_head = _zero_head(base)
    if critic_from == "shared":
        return Roles(base, value_head, reference=reference)
    scorer = _like_the_policy(folder, start) if folder is not None and critic_from == "reward" else None
    if scorer is None:
        critic = start.opened.policy(placed=False, to_shard=to_shard).base_model
    else:
        critic = scorer.base_model
        _copy_head(score_head(scorer), value_head)
    freeze_parameters(critic.requires_grad_(True), start.freeze, "the critic")
    return Roles(base, value_head, critic, reference, critic_from_reward=scorer is not None)


def _like_the_policy(folder: Path, start: StartingPoint) -> PreTrainedModel | None:
    """A reward model of the policy's own architecture and tokenizer, whose backbone can become the critic."""
    reward = open_stage(folder, ModelConfig(name_or_path=str(folder), adapter=None))
    theirs, ours = (model_config(source).get_text_config() for source in (reward.source, start.source))
    same = all(getattr(theirs, name, None) == getattr(ours, name, None) for name in ("model_type", "hidden_size"))
    if not same or reward.manifest.get("tokenizer") != tokenizer_record(start.processor):
        return None
    return reward.scorer(placed=False)


def _zero_head(model: PreTrainedModel) -> nn.Linear:
    """A value head that says 0: a critic that starts unbiased (Huang et al., 2023)."""
    config = model.config.get_text_config()
    width = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]  # the last stage of a convolutional network
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


@torch.no_grad()
def _copy_head(source: nn.Linear, target: nn.Linear) -> None:
    target.weight.copy_(source.weight)
    if source.bias is not None:
        target.bias.copy_(source.bias)


def load_maximised(context: StageContext, roles: Roles) -> Rewards:
    """What is maximised; the run's own reward model from the policy's base where it is there."""
    weights = rewards_of(context.project, context.name)
    adapter = OWN_REWARD in weights and roles.reward_head is not None
    loaded = load_rewards(
        context.project, context.parents, [name for name in weights if name != OWN_REWARD or not adapter]
    )
    if OWN_REWARD in weights and not adapter:
        print("ppo: the reward model is a model of its own: it does not fit on the policy's base", file=sys.stderr)
    return Rewards(
        {name: loaded.get(name) for name in weights}, {name: float(weight) for name, weight in weights.items()}
    )
