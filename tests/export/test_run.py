"""An export is the stage in another form, whole or not there, and says what it costs."""

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from rlhf.artifacts.open import OpenedModel, open_stage
from rlhf.cli import app
from rlhf.errors import UserError
from rlhf.export import formats
from rlhf.export.run import Settings, export, settings_of
from rlhf.models import probe
from rlhf.pipeline.folder import project_of
from rlhf.publish.build import finished
from tests.support.runs import SEQUENCES

FILES = {"README.md", "chat_template.jinja", "config.json", "export.json", "generation_config.json",
         "model.safetensors", "report.json", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


def exported(run_dir, stage, to, settings, **more):
    return export(project_of(run_dir), run_dir, stage, to, settings, say=lambda line: None, **more)


def outputs(model):
    return probe.outputs(model.eval(), SEQUENCES)


def of_stage(run_dir, stage):
    opened = open_stage(run_dir / stage)
    return outputs(opened.scorer() if stage == "reward" else opened.policy())


def nothing_left(folder):
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_merged_weights_are_the_stages_own(run_dir, tmp_path):
    result = exported(run_dir, "dpo", tmp_path / "new" / "out", settings_of("merged", None, None, None))
    folder = tmp_path / "new" / "out"
    assert {path.name for path in folder.iterdir()} == FILES
    assert nothing_left(folder.parent)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert outputs(model) == pytest.approx(of_stage(run_dir, "dpo"), abs=1e-5)
    assert json.loads((folder / "export.json").read_text()) == result
    assert result["bytes"] == (folder / "model.safetensors").stat().st_size
    assert result["bytes"] == pytest.approx(result["original_bytes"], rel=0.03)
    assert result["comparisons"] == []
    assert "the stage's own" in result["not_evaluated"]
    card = ModelCard.load(folder / "README.md")
    assert "## What the export changed" in card.text


def test_a_comparison_of_a_model_with_itself_shows_nothing(run_dir, tmp_path):
    result = exported(run_dir, "dpo", tmp_path / "out", settings_of("merged", None, None, True))
    assert {row["judge"] for row in result["comparisons"]} == {"long", "reward"}
    for row in (*result["comparisons"], *result["retained"]):
        assert (row["policy"], row["baseline"]) == ("dpo merged", "dpo")
        assert row["mean_difference"] == pytest.approx(0, abs=1e-5)
        assert row["verdict"] == "no difference"
    assert [row["n"] for row in result["comparisons"]] == [6, 6]
    assert result["kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert result["rate"]["least"] <= result["rate"]["median"] <= result["rate"]["most"]


@pytest.mark.parametrize(
    ("name", "package", "size", "near", "far"),
    [("int8", "torchao", 0.6, 1e-6, 0.02), ("nf4", "bitsandbytes", 0.5, 0.005, 0.6)],
)
def test_quantised_weights_are_smaller_and_close_with_plain_transformers(
    run_dir, tmp_path, name, package, size, near, far
):
    """Embeddings, which stay as they are, are 27% of the float weights, and the rest becomes a quarter or less."""
    result = exported(run_dir, "dpo", tmp_path / "out", settings_of(name, None, None, True))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert outputs(model) == pytest.approx(result["probe"]["exported"], rel=0.05)  # some CPUs compute nf4 in bfloat16
    assert result["probe"]["written"] == pytest.approx(of_stage(run_dir, "dpo"))
    assert result["bytes"] < size * result["original_bytes"]
    assert near < result["kl_per_token"] < far
    assert f"`pip install {package}`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["merged", "int8"])
def test_a_reward_model_keeps_its_accuracy(run_dir, tmp_path, name):
    result = exported(run_dir, "reward", tmp_path / "out", settings_of(name, None, None, True))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1
    assert outputs(model) == pytest.approx(of_stage(run_dir, "reward"), rel=0.02, abs=0.2)
    pairs = result["pairs"]
    assert pairs["n"] > 0
    assert pairs["difference"] == pytest.approx(pairs["exported_accuracy"] - pairs["accuracy"])
    assert pairs["verdict"] == "no difference"
    assert result["rate"]["unit"] == "sequences a second"


def test_a_stranger_is_not_exported(run_dir, tmp_path, monkeypatch):
    """What is written is held against the model in memory; nothing is left of it, and what was there stays."""
    settings = settings_of("merged", None, None, False)
    exported(run_dir, "sft", tmp_path / "out", settings)
    before = (tmp_path / "out" / "export.json").read_bytes()

    def spoilt(model, whole, folder):
        model.model.layers[0].self_attn.q_proj.weight.data = model.model.layers[0].self_attn.q_proj.weight.flip(0)
        model.save_pretrained(folder)
        model.model.layers[0].self_attn.q_proj.weight.data = model.model.layers[0].self_attn.q_proj.weight.flip(0)
        return []

    spoiling = Settings(replace(formats.find("merged"), write=spoilt), evaluate=False)
    with pytest.raises(UserError, match="rounding does not explain that"):
        exported(run_dir, "dpo", tmp_path / "out", spoiling, force=True)
    assert (tmp_path / "out" / "export.json").read_bytes() == before
    with pytest.raises(UserError, match="rounding does not explain that"):
        exported(run_dir, "dpo", tmp_path / "other", spoiling)
    assert not (tmp_path / "other").exists()
    assert nothing_left(tmp_path)


def test_a_folder_is_replaced_by_force_and_only_if_it_is_an_export(run_dir, tmp_path):
    settings = settings_of("merged", None, None, False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").touch()
    for to, message in (("mine", "holds no export that could be replaced"), ("file", "is no folder")):
        with pytest.raises(UserError, match=message):
            exported(run_dir, "sft", tmp_path / to, settings, force=True)
    (tmp_path / "mine" / "export.json").write_text("{}")  # of another program
    with pytest.raises(UserError, match=r"mine/export\.json: has no 'stage'"):
        exported(run_dir, "sft", tmp_path / "mine", settings, force=True)
    with pytest.raises(UserError, match="file name too long"):
        exported(run_dir, "sft", tmp_path / ("x" * 300), settings)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    exported(run_dir, "sft", tmp_path / "empty", settings)
    with pytest.raises(UserError, match="replace it with --force"):
        exported(run_dir, "dpo", tmp_path / "empty", settings)
    assert exported(run_dir, "dpo", tmp_path / "empty", settings, force=True)["stage"] == "dpo"
    assert json.loads((tmp_path / "empty" / "export.json").read_text())["stage"] == "dpo"
    assert nothing_left(tmp_path)


def test_an_adapter_of_a_base_in_4_bits_is_not_the_stages_own_once_merged(run_dir, tmp_path, monkeypatch):
    whole = finished(run_dir, "sft")
    opened = OpenedModel(replace(whole.opened.settings, quantization="nf4"), run_dir / "sft", whole.opened.manifest)
    monkeypatch.setattr("rlhf.export.run.finished", lambda *given: replace(whole, opened=opened))
    result = exported(run_dir, "sft", tmp_path / "out", settings_of("merged", None, None, None))
    assert "unquantized base" in result["not_evaluated"]
    assert sum("trained on a base in 4 bits" in note for note in result["notes"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("int5", None, None), "unknown 'int5'; did you mean 'int8'"),
        (("int4", None, None), "nf4 and gguf-q4_0 have 4 bits"),
        (("merged", "size", None), "--prune: unknown 'size'; known: magnitude, wanda"),
        (("merged", None, "0.5"), "--sparsity: goes with --prune"),
        (("merged", "wanda", "1"), "expected a share between 0 and 1"),
        (("merged", "wanda", "4:2"), "expected fewer zeros than inputs"),
        (("merged", "wanda", "half"), "not 'half'"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(UserError, match=message):
        settings_of(*options, None)


def test_the_command(run_dir, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["export", f"{run_dir}:sft", "--to", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"exported: {tmp_path}" in done.output.replace("\n", "")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32
    new = ("--to", str(tmp_path / "x"))
    for arguments in (
        ("no-run", *new), (f"{run_dir}:ppo", *new), (f"{run_dir}:evaluate", *new),
        (f"{run_dir}", *new, "--format", "int5"),
        (f"{run_dir}", "--to", str(tmp_path / "out")),
    ):  # fmt: skip
        done = runner.invoke(app, ["export", *arguments])
        assert isinstance(done.exception, UserError), done.output
    assert not (tmp_path / "x").exists()
