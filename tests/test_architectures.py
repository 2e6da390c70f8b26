"""What docs/architectures.md says of each architecture: a handful here, all of them with `make architectures`."""

import pytest

from tests.support.architectures import NAMES, examined, read_table

FEW = ["llama", "qwen3_5", "falcon_h1", "jamba", "recurrent_gemma", "lfm2", "gpt_neo", "doge", "gemma3_text", "mixtral"]


@pytest.fixture(scope="module")
def said(root):
    return read_table((root / "docs/architectures.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [
    *FEW, *(pytest.param(name, marks=pytest.mark.architectures) for name in NAMES if name not in FEW),
])  # fmt: skip
def test_what_ran_still_runs(name, said):
    """Right wherever it is not refused; and what the table says that runs is not refused now."""
    sampled, shares = examined(name).cells[1:]
    was_sampled, was_shared = said[name]
    if was_sampled.startswith("yes"):
        assert sampled == was_sampled
    if was_shared.startswith(("yes", "within")):
        assert shares == was_shared


def test_the_table_has_them_all(said):
    assert list(said) == NAMES
    assert sum(sampled.startswith("yes") for sampled, _ in said.values()) > 140
