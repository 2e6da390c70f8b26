"""Learning rates, each with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.init.model import LARGE, TINY

_QUICKSTART = "recipes/quickstart.yaml, measured on its 1.5 million parameters"
_HANDBOOK = "alignment-handbook, recipes/zephyr-7b-beta"
_TEN = "LoRA takes about ten times the rate of all weights (Schulman et al. 2025, LoRA Without Regret)"


@dataclass(frozen=True)
class Rate:
    """A learning rate for a stage."""

    stage: str
    adapter: bool
    """Whether it is for LoRA; else for all weights."""
    sizes: tuple[float, float]
    """Parameters of a model, from and up to."""
    value: float
    source: str


_ANY = (0.0, float("inf"))
_SMALL, _MIDDLE, _LARGE = (0.0, TINY), (TINY, LARGE), (LARGE, float("inf"))
_NOT_SMALL = (TINY, float("inf"))

RATES = (
    Rate("sft", True, _SMALL, 4e-3, _QUICKSTART),
    Rate("sft", True, _MIDDLE, 2e-4, "QLoRA (Dettmers et al. 2023, table 9), models of 7 to 13 billion"),
    Rate("sft", True, _LARGE, 1e-4, "QLoRA (Dettmers et al. 2023, table 9), models of 33 to 65 billion"),
    Rate("sft", False, _SMALL, 5e-4, "an eighth of the rate for LoRA in recipes/quickstart.yaml"),
    Rate("sft", False, _NOT_SMALL, 2e-5, f"{_HANDBOOK}/sft/config_full.yaml; the default of trl.SFTConfig"),
    Rate("reward", True, _SMALL, 2e-3, _QUICKSTART),
    Rate("reward", True, _NOT_SMALL, 1e-4, "TRL, examples/scripts/reward_modeling.py with LoRA"),
    Rate("reward", False, _SMALL, 3e-4, "docs/data.md, measured on 1.5 million parameters"),
    Rate("reward", False, _NOT_SMALL, 1e-5, "TRL, examples/scripts/reward_modeling.py with all weights"),
    Rate("dpo", True, _SMALL, 1e-3, _QUICKSTART),
    Rate("dpo", True, _NOT_SMALL, 5e-6, f"{_HANDBOOK}/dpo/config_qlora.yaml"),
    Rate("dpo", False, _SMALL, 1e-4, "a tenth of the rate for LoRA in recipes/quickstart.yaml"),
    Rate("dpo", False, _NOT_SMALL, 5e-7, f"{_HANDBOOK}/dpo/config_full.yaml"),
    Rate("kto", True, _SMALL, 1e-3, f"as for DPO: {_QUICKSTART}"),
    Rate("kto", True, _NOT_SMALL, 5e-6, "docs/kto.md: ten times that of all weights"),
    Rate("kto", False, _SMALL, 1e-4, "as for DPO: a tenth of the rate for LoRA in recipes/quickstart.yaml"),
    Rate("kto", False, _NOT_SMALL, 5e-7, "docs/kto.md: 5e-7 to 5e-6 for all weights"),
    Rate("ppo", True, _SMALL, 2e-3, _QUICKSTART),
    Rate("ppo", True, _NOT_SMALL, 3e-5, f"ten times that of all weights; {_TEN}"),
    Rate("ppo", False, _SMALL, 2e-4, "a tenth of the rate for LoRA in recipes/quickstart.yaml"),
    Rate("ppo", False, _NOT_SMALL, 3e-6, "TRL, examples/scripts/ppo/ppo_tldr.py"),
    Rate("label", False, _SMALL, 3e-4, "BERT miniatures (Turc et al. 2019), the largest of the rates tried"),
    Rate("label", False, _NOT_SMALL, 2e-5, "BERT (Devlin et al. 2019, appendix A.3)"),
    Rate("label", True, _ANY, 2e-4, f"ten times that of BERT; {_TEN}"),
    Rate("span", False, _SMALL, 3e-4, "BERT miniatures (Turc et al. 2019), the largest of the rates tried"),
    Rate("span", False, _NOT_SMALL, 3e-5, "BERT (Devlin et al. 2019, appendix A.3)"),
    Rate("span", True, _ANY, 2e-4, f"ten times that of BERT; {_TEN}"),
    Rate("seq2seq", False, _ANY, 3e-4, "transformers, documentation of T5: 1e-4 and 3e-4 work well with AdamW"),
    Rate("seq2seq", True, _ANY, 1e-3, f"about ten times the lower of T5's rates; {_TEN}"),
)  # fmt: skip
"""The first that fits is taken. A model of unknown size counts as one of middle size."""


def rate(stage: str, adapter: bool, parameters: float | None) -> Rate:
    """The learning rate of a stage.

    Args:
        stage: The stage, or what supervised training makes where that is no language model: label, span or seq2seq.
        adapter: Whether LoRA is trained.
        parameters: Of the base model; None where that is not known.
    """
    size = 1e9 if parameters is None else parameters
    return next(
        row for row in RATES if (row.stage, row.adapter) == (stage, adapter) and row.sizes[0] <= size < row.sizes[1]
    )
