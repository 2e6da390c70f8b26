"""The notebook of the quickstart: without outputs in the repository, and run from its first cell to its last."""

import json
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/quickstart.ipynb"
SMALL = [
    "stages.sft.max_steps=2", "stages.reward.max_steps=2", "stages.dpo.max_steps=2", "stages.ppo.total_episodes=16",
    "stages.ppo.per_device_train_batch_size=8", "stages.ppo.gradient_accumulation_steps=1",
    "stages.ppo.max_new_tokens=8", "stages.ppo.normalize_samples=8", "stages.ppo.critic_warmup_rollouts=0",
    "data.demonstrations.limit=60", "data.preferences.limit=60", "data.prompts.limit=8", "evaluate.prompts=6",
    "evaluate.samples=1", "evaluate.max_new_tokens=8", "gate=warn",
]  # fmt: skip


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 5
    assert not [cell for cell in code if cell.outputs or cell.execution_count]


@pytest.mark.slow
def test_the_notebook_runs_headless(notebook, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name, folder in (("JUPYTER_RUNTIME_DIR", "runtime"), ("IPYTHONDIR", "ipython"), ("MPLCONFIGDIR", "matplotlib")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    given = [*SMALL, f"output_dir={tmp_path / 'runs'}"]
    first = notebook.cells[1]
    assert "OVERRIDES: list[str] = []" in first.source
    first.source = first.source.replace("OVERRIDES: list[str] = []", f"OVERRIDES: list[str] = {given}")
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    report = json.loads((tmp_path / "runs/quickstart/report.json").read_text(encoding="utf-8"))
    (table,) = [output.data["text/markdown"] for output in outputs[2] if output.output_type == "execute_result"]
    assert len(table.splitlines()) == 2 + len(report["comparisons"])
    assert [output for output in outputs[3] if "image/png" in output.get("data", {})]
    said = "".join(output.get("text", "") for output in outputs[4] if output.get("name") == "stdout")
    assert [line.partition(":")[0] for line in said.splitlines() if line] == ["sft", "ppo"]
    said = "".join(output.text for cell in outputs for output in cell if output.get("name") == "stderr")
    assert "it/s" not in said
    assert "IProgress" not in said
    assert "widget" not in str(outputs)
