"""What a stage starts from is what its parent left: tokenizer, template, base, type, reference.

Each defect is planted in a copy of a finished run, and is refused before anything trains, with both values.
"""

import re
import shutil

import pytest
import torch
from huggingface_hub import constants

from rlhf.artifacts import open as opening
from rlhf.config.load import load_project
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.load import Source, load_policy, source_of
from rlhf.models.tokenizer import load_tokenizer
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.rewards.model import RewardModel
from tests.support.damage import copied, edit_json, edit_tensors, record_of, swap_tokens
from tests.support.models import strengthened
from tests.support.projects import chats, make_project

HASH = "'[0-9a-f]{64}'"


def template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("Human", "User"))


SPOILT = {
    "vocabulary": (swap_tokens, rf"vocabulary \(hash\) was {HASH} when the stage ran and is {HASH} now"),
    "template": (template, rf"chat template \(hash\) was {HASH} when the stage ran and is {HASH} now"),
    "eos": (lambda f: edit_json(f / "tokenizer_config.json", eos_token="!"),
            r"EOS token was '<\|end\|>' when the stage ran and is '!' now"),
    "pad": (lambda f: edit_json(f / "tokenizer_config.json", pad_token="<|end|>"),
            r"pad token was '<\|pad\|>' when the stage ran and is '<\|end\|>' now"),
    "bos": (lambda f: edit_json(f / "tokenizer_config.json", bos_token="!"),
            r"BOS token was None when the stage ran and is '!' now"),
    "side": (lambda f: edit_json(f / "tokenizer_config.json", padding_side="left"),
             "padding side was 'right' when the stage ran and is 'left' now"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_changed_tokenizer_is_refused_with_both_values(trained, tmp_path, tiny_llama, what):
    spoil, message = SPOILT[what]
    project = copied(trained, tmp_path, tiny_llama, "sft", "reward")
    for stage in ("sft", "reward"):
        spoil(project.run_dir / stage)
    with pytest.raises(UserError, match=message):
        prepare_stage(project, "dpo")
    with pytest.raises(UserError, match=message):  # a reward model from wherever it lies
        RewardModel(project.run_dir / "reward")
    with pytest.raises(UserError, match=r"files changed since the stage finished \(recorded \w{12}, found \w{12}\)"):
        run_stage(project, "dpo")
    assert not (project.run_dir / "dpo").exists()


def test_settings_changed_after_the_parent_ran_are_refused(trained, tmp_path, tiny_llama):
    """A later stage takes its parent's tokenizer, so that a changed setting would do nothing, in silence."""
    project = copied(trained, tmp_path, tiny_llama, "sft")
    prepare_stage(project, "dpo")
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for override, message in (
        ("model.eos_token=e", r"model.eos_token: .*sft was trained with '<\|end\|>', the settings now say 'e'"),
        ("model.pad_token=e", r"model.pad_token: .*sft was trained with '<\|pad\|>', the settings now say 'e'"),
        (f"model.chat_template={tmp_path}/mine.jinja", rf"model.chat_template: .* {HASH}, the settings now say {HASH}"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_stage(load_project(project.path, [override]), "dpo")


def test_a_template_of_ones_own_is_the_same_in_every_stage(tmp_path, tiny_llama):
    """White space at its end and line breaks of another system included, which saving could lose."""
    template = b"{% for m in messages %}\r\n{{ m['content'] }}{% endfor %}{{ eos_token }}\n\n"
    (tmp_path / "mine.jinja").write_bytes(template)
    model = {"name_or_path": str(tiny_llama), "chat_template": str(tmp_path / "mine.jinja"), "pad_token": "e"}
    stages = {name: {"max_steps": 1, "save_strategy": "no"} for name in ("sft", "dpo")}
    project = make_project(tmp_path, tiny_llama, chats(), model=model, stages=stages)
    for stage in stages:
        run_stage(project, stage)
    first, second = (record_of(project.run_dir / stage)["tokenizer"] for stage in stages)
    assert first == second
    assert first["pad"] == "e"


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_another_base_under_an_adapter_is_refused(tmp_path, tiny_llama, stage):
    """Weights of the base's folder replaced after SFT; a reward model has no log-probabilities that would show it."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    project = make_project(tmp_path, base, stages={name: {"max_steps": 1} for name in ("sft", stage)})
    run_stage(project, "sft")
    edit_tensors(base / "model.safetensors", lambda name, tensor: tensor * 1.1)
    message = rf"sft: its adapter is for {base}, whose files changed .*\(recorded \w{{12}}, found \w{{12}}\)"
    with pytest.raises(UserError, match=message):
        run_stage(project, stage)
    assert not (project.run_dir / stage).exists()


def test_a_branch_that_moved_under_an_adapter_is_refused(tmp_path, monkeypatch, trained):
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    refs = cache / "models--ada--base" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    source = Source("ada/base", adapter=tmp_path)
    lineage = {"commit": probe.base_commit(source)}
    assert lineage == {"commit": "a" * 40}
    probe.check_commit(source, lineage, "runs/x/sft")
    (refs / "main").write_text("b" * 40)
    with pytest.raises(UserError, match=f"ada/base was at commit {'a' * 40} .* is at {'b' * 40} now"):
        probe.check_commit(source, lineage, "runs/x/sft")
    assert record_of(trained.run_dir / "sft")["lineage"]["commit"] is None, "a folder has none"


def test_the_moved_branch_is_looked_at_before_a_stage_begins(trained, tmp_path, tiny_llama, monkeypatch):
    project = copied(trained, tmp_path, tiny_llama, "sft")
    manifest = project.run_dir / "sft/stage.json"
    edit_json(manifest, lineage={**record_of(manifest.parent)["lineage"], "commit": "a" * 40})
    monkeypatch.setattr(probe, "base_commit", lambda source: "b" * 40)
    with pytest.raises(UserError, match=f"at commit {'a' * 40} when the stage ran and is at {'b' * 40} now"):
        prepare_stage(project, "dpo")


def test_weights_in_another_type_are_refused_beyond_its_tolerance(tmp_path, tiny_llama):
    config = ModelConfig(name_or_path=str(tiny_llama))
    tokenizer = load_tokenizer(config)
    model = strengthened(load_policy(source_of(config), config, tokenizer), 4.0)
    made = probe.make(model, [list(range(20, 60)), list(range(90, 120))])
    probe.check(model, made, "run/sft")
    with pytest.raises(UserError, match=r"scores .* it scored .*: its weights were float32 and are bfloat16 now, or "):
        probe.check(model.bfloat16(), made, "run/sft")
    again = probe.make(model, made["ids"])  # made in bfloat16, it is the same within that type's own rounding
    probe.check(model.float(), again, "run/sft")


@pytest.mark.parametrize(("stage", "adapter"), [("dpo", {"r": 4}), ("dpo", None), ("ppo", {"r": 4}), ("ppo", None)])
def test_a_reference_that_is_the_base_and_not_the_parent_is_refused(
    trained, tmp_path, tiny_llama, stage, adapter, monkeypatch
):
    """The parent's adapter is dropped on loading: the policy would start at the base model, and be held near it."""
    options = {"dpo": {"max_steps": 1}, "ppo": {"max_steps": 2, "max_new_tokens": 4, "normalize_samples": 0}}
    project = copied(
        trained, tmp_path, tiny_llama, "sft", "reward", model={"name_or_path": str(tiny_llama), "adapter": adapter},
        stages={"sft": {}, "reward": {}, stage: options[stage]},
    )  # fmt: skip
    monkeypatch.setattr(opening, "source_of", lambda config, parent=None: Source(str(tiny_llama)))
    with pytest.raises(UserError, match=r"sft: loaded, the model scores .*; saved, it scored .* its base model is not"):
        run_stage(project, stage)
    assert not (project.run_dir / stage).exists()


@pytest.mark.parametrize("adapter", [{"r": 4}, None])
def test_the_reference_is_the_parent_exactly(trained, tmp_path, tiny_llama, adapter, monkeypatch):
    """What the trainer calls its reference gives the log-probabilities of the parent's own probe."""
    from rlhf.training import run

    seen, plainly = [], run.run_training

    def look(trainer, context):
        model = trainer.model if trainer.ref_model is None else trainer.ref_model
        stored = record_of(context.parent)["probe"]
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                seen.append((probe.outputs(model, stored["ids"]), stored["outputs"]))
        else:
            seen.append((probe.outputs(model, stored["ids"]), stored["outputs"]))
        return plainly(trainer, context)

    monkeypatch.setattr(run, "run_training", look)
    project = copied(trained, tmp_path, tiny_llama, "sft", model={"name_or_path": str(tiny_llama), "adapter": adapter},
                     stages={"sft": {}, "dpo": {"max_steps": 1, "precompute_ref_log_probs": False}})  # fmt: skip
    run_stage(project, "dpo")
    ((found, wanted),) = seen
    assert found == pytest.approx(wanted, abs=1e-4)
    config = ModelConfig(name_or_path=str(tiny_llama))
    base = load_policy(source_of(config), config, load_tokenizer(config))
    ids = record_of(project.run_dir / "sft")["probe"]["ids"]
    assert probe.outputs(base, ids) != pytest.approx(wanted, abs=1e-1), "the base is another model"


def test_what_a_message_names_is_there(trained):
    """The messages above promise values of the record: it has them all."""
    tokenizer = record_of(trained.run_dir / "sft")["tokenizer"]
    assert tokenizer.keys() == {"eos", "pad", "bos", "padding_side", "size", "template_hash", "hash"}
    assert re.fullmatch("[0-9a-f]{64}", tokenizer["hash"])
    assert torch.isfinite(torch.tensor(record_of(trained.run_dir / "reward")["probe"]["outputs"])).all()
