"""The table of learning rates has a rate for every stage, kind of training and size, each with a source."""

import pytest
import yaml

from rlhf.init.choose import TRAINED
from rlhf.init.rates import RATES, rate

LEARNERS = (*TRAINED, "label", "span", "seq2seq")


@pytest.mark.parametrize("stage", LEARNERS)
@pytest.mark.parametrize("parameters", [1e3, 49.9e6, 50e6, 7e9, 20e9, 70e9, None])
def test_every_model_has_one_and_lora_takes_more(stage, parameters):
    lora, full = rate(stage, True, parameters), rate(stage, False, parameters)
    assert lora.source
    assert full.source
    if stage not in ("label", "span"):  # small encoders take as much for all weights
        assert lora.value > full.value


def test_the_table_is_what_its_sources_say():
    assert rate("sft", True, 7e9).value == 2e-4  # QLoRA, table 9: 7B and 13B
    assert rate("sft", True, 65e9).value == 1e-4  # 33B and 65B
    assert rate("dpo", True, 7e9).value == 5e-6
    assert rate("dpo", False, 7e9).value == 5e-7


def test_small_models_take_more():
    for stage in TRAINED:
        assert rate(stage, True, 1e6).value > rate(stage, True, 1e9).value


def test_no_row_is_hidden_by_another():
    assert {row.stage for row in RATES} == set(LEARNERS)
    for row in RATES:
        assert rate(row.stage, row.adapter, row.sizes[0]) is row


def test_the_recipe_that_rates_are_taken_from_has_them(root):
    stages = yaml.safe_load((root / "recipes/quickstart.yaml").read_text())["stages"]
    for stage, settings in stages.items():
        assert rate(stage, True, 1.5e6).value == settings["learning_rate"]


def test_the_page_has_the_table(root):
    """Written by `python -m tests.init.test_rates` after a change of the table."""
    page = (root / "docs/init.md").read_text(encoding="utf-8")
    assert page.split("<!-- rates -->\n")[1].split("<!-- end -->")[0] == table()


def table() -> str:
    """The table as the page shows it."""
    lines = ["| Trained | Weights | Parameters | Rate | Source |", "|---|---|---|---:|---|"]
    for row in RATES:
        low, high = map(words, row.sizes)
        size = f"{low} to {high}" if low and high else f"from {low}" if low else f"below {high}" if high else "any"
        lines.append(f"| {row.stage} | {'LoRA' if row.adapter else 'all'} | {size} | {row.value:g} | {row.source} |")
    return "\n".join(lines) + "\n"


def words(size: float) -> str:
    """A bound in words; empty where there is none."""
    if not 0 < size < float("inf"):
        return ""
    return f"{size / 1e9:g} billion" if size >= 1e9 else f"{size / 1e6:g} million"


if __name__ == "__main__":
    from pathlib import Path

    path = Path("docs/init.md")
    before, rest = path.read_text(encoding="utf-8").split("<!-- rates -->\n")
    path.write_text(f"{before}<!-- rates -->\n{table()}<!-- end -->{rest.split('<!-- end -->')[1]}", encoding="utf-8")
