"""Recipes for models of the hub: their settings, the layouts of their data, and the memory in their headers."""

import json
from pathlib import Path

import pytest
import yaml

from rlhf.config.load import load_project
from rlhf.data.ledger import Ledger
from rlhf.pipeline.execute import prepare_stage
from rlhf.pipeline.folder import partial_dir
from rlhf.workflow import is_stage, planned, stage_of
from tests.support import recipe_headers, recipe_models
from tests.support.projects import write_rows

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
ON_HUB = [path for path in RECIPES if not load_project(path).model.name_or_path.startswith("data/")]


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def row(dataset: str, number: int) -> dict:
    """A row with the columns that a dataset has on the hub."""
    ask, good, bad = f"What is {number} and {number}?", f"It is {2 * number}.", "No idea."
    turns = [said("user", ask), said("assistant", good)]
    worse = [said("user", ask), said("assistant", bad)]
    transcript = f"\\n\\nHuman: {ask}\\n\\nAssistant: ".encode().decode("unicode_escape")
    return {
        "allenai/tulu-3-sft-mixture": {"id": f"{number}", "messages": turns, "source": "some/part"},
        "HuggingFaceH4/ultrafeedback_binarized": {
            "prompt": ask, "prompt_id": f"{number}", "chosen": turns, "rejected": worse, "messages": turns,
            "score_chosen": 8.0, "score_rejected": 2.0,
        },
        "Skywork/Skywork-Reward-Preference-80K-v0.2": {"chosen": turns, "rejected": worse, "source": "some/part"},
        "trl-lib/kto-mix-14k": {"prompt": turns[:1], "completion": turns[1:], "label": bool(number % 2)},
        "openai/gsm8k:main": {"question": ask, "answer": f"{number} + {number} = {2 * number}\n#### {2 * number}"},
        "Anthropic/hh-rlhf": {"chosen": transcript + good, "rejected": transcript + bad},
    }[dataset]  # fmt: skip


def offline(tree, folder: Path, model: Path):
    """A recipe's settings with its datasets as files, and a model that any machine has."""
    if isinstance(tree, dict):
        if "source" in tree:
            name = tree["source"].replace("/", "-").replace(":", "-")
            rows = [row(tree["source"], number) for number in range(60)]
            kept = {key: value for key, value in tree.items() if key not in ("split", "weight")}
            return {**kept, "source": str(write_rows(folder / f"{name}.jsonl", rows))}
        if "name_or_path" in tree:
            return {**tree, "name_or_path": str(model), "eos_token": None, "dtype": "float32", "quantization": None}
        return {key: offline(value, folder, model) for key, value in tree.items()}
    return tree


SHORT = {"max_new_tokens": 32}
"""The model that any machine has holds 256 tokens."""


@pytest.mark.parametrize("recipe", ON_HUB, ids=lambda path: path.stem)
def test_a_recipe_reads_what_its_datasets_hold(recipe, tmp_path, tiny_llama, tiny_bert):
    tree = yaml.safe_load(recipe.read_text())
    local = offline(tree, tmp_path, tiny_llama)
    for stage in local["stages"].values():
        stage |= SHORT if "max_new_tokens" in stage else {}
        if "model" in stage:
            stage["model"]["name_or_path"] = str(tiny_bert)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**local, "output_dir": str(tmp_path / "runs")}))
    project = load_project(path)
    for name in project.stages:
        prepare_stage(project, name)
        ledger = Ledger.load(partial_dir(project, name) / "data")
        assert ledger.trained >= 20, (name, ledger.summary())
        assert not ledger.dropped, ledger.dropped


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_header_names_the_commands(recipe):
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    commands = [line for line in header if f"rlhf run recipes/{recipe.name}" in line]
    assert commands
    project = load_project(recipe)
    table = recipe_headers.TABLE.search(recipe.read_text())
    if table is not None:
        stages = {line.split()[0] for line in recipe_headers.rows_of(recipe.read_text())}
        assert stages == {name for name in planned(project) if stage_of(name).workload is not None}
        assert all(is_stage(name) for name in stages)


def test_every_model_of_a_recipe_has_its_size(tmp_path):
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    where = recipe_models.write(tmp_path)
    for name, parameters in recipe_models.PARAMETERS.items():
        config = AutoConfig.from_pretrained(where[name])
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(weight.numel() for weight in model.parameters()) == parameters, name
    with torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(where["answerdotai/ModernBERT-base"]))
    assert round(sum(weight.numel() for weight in encoder.parameters()) / 1e6) == 149


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipe_headers.recipes(), ids=lambda path: path.stem)
def test_the_memory_of_a_header_is_that_of_preflight(recipe, tmp_path):
    """`python -m tests.support.recipe_headers` writes it."""
    assert recipe_headers.rows_of(recipe.read_text()) == recipe_headers.made(recipe, recipe_models.write(tmp_path))
