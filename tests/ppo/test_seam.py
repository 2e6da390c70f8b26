"""What online training knows of a policy: the protocol. A classifier, which acts once, trains on the same loop."""

import ast
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, set_seed

from rlhf.models.roles import Roles
from rlhf.policies.base import RolesPolicy
from rlhf.policies.completion import Completion
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.compose import Rewards

LABELS = ("red", "green", "blue")
ROWS = 12


@dataclass(frozen=True)
class Row:
    """An input: token ids, and the label that is right."""

    ids: list[int]
    prompt: str
    columns: dict[str, str]


@dataclass(frozen=True)
class PackedLabels:
    ids_BL: torch.Tensor
    labels_BT: torch.Tensor
    mask_BT: torch.Tensor

    def to(self, device):
        return PackedLabels(*(tensor.to(device) for tensor in vars(self).values()))


class LabelPolicy(RolesPolicy):
    """A classifier that chooses one label: all that a kind of policy has to say."""

    exact_log_probs, mismatch_hint = True, "the classifier is at fault"

    @torch.no_grad()
    def sample(self, inputs, seeds):
        groups = []
        for row, seeds_S in zip(inputs, seeds, strict=True):
            with self.roles.policy_model() as model:
                log_probs_V = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            entropy = -(log_probs_V.exp() * log_probs_V).sum().item()
            draws = [
                torch.multinomial(log_probs_V.exp(), 1, generator=torch.Generator().manual_seed(seed)).item()
                for seed in seeds_S
            ]
            groups.append(
                [Completion([label], True, [log_probs_V[label].item()], [entropy], LABELS[label]) for label in draws]
            )
        return groups

    def own_scores(self, inputs, completions, batch_size):
        raise AssertionError("there is no reward model on this base")

    def size(self, input, completions):
        return len(input.ids)

    def pack(self, inputs, completions):
        pairs = [
            (row.ids, completion.ids) for row, group in zip(inputs, completions, strict=True) for completion in group
        ]
        labels_BT = torch.tensor([labels for _, labels in pairs])
        return PackedLabels(
            torch.tensor([ids for ids, _ in pairs]), labels_BT, torch.ones_like(labels_BT, dtype=torch.bool)
        )

    def log_probs(self, packed, entropies=False):
        with self.roles.policy_model() as model:
            log_probs_BV = model(packed.ids_BL).logits.log_softmax(-1)
        entropies_BT = -(log_probs_BV.exp() * log_probs_BV).sum(1, keepdim=True) if entropies else None
        return log_probs_BV.gather(1, packed.labels_BT), entropies_BT

    @torch.no_grad()
    def reference_log_probs(self, packed):
        with self.roles.reference() as model:
            return model(packed.ids_BL).logits.log_softmax(-1).gather(1, packed.labels_BT)

    def values(self, packed):
        with self.roles.critic_backbone() as backbone:
            states = backbone(packed.ids_BL).last_hidden_state[:, 0]
        return self.roles.value(states)[:, None].expand(-1, 2)


def right(prompts, completions, answer, **columns):
    """1 for the right label."""
    return [float(completion == wanted) for completion, wanted in zip(completions, answer, strict=True)]


def make_label_trainer(folder, **fields) -> PPOTrainer:
    settings = {
        "output_dir": str(folder), "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
        "per_device_train_batch_size": 24, "max_steps": 80, "learning_rate": 3e-3, "normalize_samples": 0,
        "kl_coef": 0.0, "logging_steps": 1, "num_ppo_epochs": 4, "lr_scheduler_type": "constant", **fields,
    }  # fmt: skip
    args = PPOConfig(**settings)
    config = BertConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_labels=3
    )
    set_seed(0)
    first, second, third = (BertForSequenceClassification(config).eval() for _ in range(3))
    for other in (second, third):
        other.load_state_dict(first.state_dict())
    critic = third.base_model if args.critic_start else None
    roles = Roles(first, nn.Linear(32, 1) if critic is not None else None, critic, second)
    rows = [
        Row([2, 5 + number % 3, 9 + number], f"text {number}", {"answer": LABELS[number % 3]}) for number in range(ROWS)
    ]
    return PPOTrainer(LabelPolicy(roles), args, rows, Rewards({"right": right}, {"right": 1.0}))


@pytest.mark.parametrize("fields", [{}, {"advantage": "rloo", "samples_per_prompt": 4}])
def test_a_classifier_learns_the_right_label(tmp_path, fields):
    trainer = make_label_trainer(tmp_path, **fields)
    trainer.train()
    rollouts = [row for row in trainer.state.log_history if "objective/scores" in row]
    assert rollouts[0]["policy/ratio"] == pytest.approx(1.0, abs=0.05)
    assert rollouts[0]["response/length"] == 1
    assert rollouts[0]["response/eos_share"] == 1
    assert rollouts[0]["objective/scores"] < 0.55
    assert sum(row["objective/scores"] for row in rollouts[-4:]) / 4 > 0.7


def test_ppo_names_no_kind_of_policy(root):
    """It imports the protocol and what all kinds share: no tokenizer, no sampler, no layout, no models."""
    shared = {"protocol", "base", "completion", "settings"}
    for path in (root / "rlhf/ppo").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf."):
                room, _, module = node.module.removeprefix("rlhf.").partition(".")
                assert room not in ("models", "prefix_sharing", "data"), f"{path.name} imports {node.module}"
                assert room != "policies" or module in shared, f"{path.name} imports {node.module}"
