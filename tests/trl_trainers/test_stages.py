"""What the stages take: encoders, every DPO loss, keep_end, bf16; and what they refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.data.splits import side
from rlhf.errors import Incident, UserError
from rlhf.models import probe
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.rewards.model import RewardModel
from rlhf.training import run
from rlhf.workflow import stage_of
from tests.support.architectures import built
from tests.support.models import strengthened
from tests.support.projects import NAMES, chats, make_project, pairs, write_rows


def record_of(project, stage) -> dict:
    return json.loads((project.run_dir / stage / "stage.json").read_text())


def test_every_dpo_loss_trains(tmp_path, tiny_llama):
    import re
    from pathlib import Path

    import trl.trainer.dpo_trainer as module

    known = set(re.findall(r'loss_type == "(\w+)"', Path(module.__file__).read_text()))
    assert known == set(stage_of("dpo").choices["loss_type"]), "TRL's losses changed"
    for loss in stage_of("dpo").choices["loss_type"]:
        options = {"loss_type": loss, "max_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
        if loss in ("exo_pair", "robust"):
            options["label_smoothing"] = 0.1
        project = make_project(tmp_path, tiny_llama, pairs(12), name=loss, stages={"dpo": options}, evaluate=False)
        run_stage(project, "dpo")
        assert record_of(project, "dpo")["metrics"]["steps"] == 1


@pytest.mark.parametrize("adapter", [None, {"r": 4}])
def test_reference_log_probs_are_stored_where_that_pays(tmp_path, tiny_llama, adapter, monkeypatch):
    """Over two epochs for either; over one where all weights are trained. Numbers are those of not storing them."""
    found, trainers, plainly = {}, [], run.run_training
    monkeypatch.setattr(
        run, "run_training", lambda trainer, context: trainers.append(trainer) or plainly(trainer, context)
    )
    for name, options in {
        "one": {"num_train_epochs": 1},
        "two": {"num_train_epochs": 2},
        "few": {"max_steps": 1},
        "not": {"num_train_epochs": 2, "precompute_ref_log_probs": False},
        "plain": {"num_train_epochs": 2, "precompute_ref_log_probs": False, "fold": False},
    }.items():
        stage = {"adapter": adapter, "save_strategy": "no", "learning_rate": 1e-3, **options}
        project = make_project(tmp_path, tiny_llama, name=name, stages={"dpo": stage})
        run_stage(project, "dpo")
        found[name] = (
            "ref_chosen_logps" in trainers[-1].train_dataset.column_names,
            record_of(project, "dpo")["metrics"],
        )
        assert (trainers[-1].ref_model is None) is (adapter is not None or found[name][0])
    assert {name: stored for name, (stored, _) in found.items()} == {
        "one": adapter is None, "two": True, "few": False, "not": False, "plain": False,
    }  # fmt: skip
    for name in ("not", "plain"):
        for key in ("loss", "train_loss", "margin", "accuracy", "loss_before"):
            assert found["two"][1][key] == pytest.approx(found[name][1][key], abs=1e-5), key


def test_a_policy_that_cannot_reply_is_refused_before_it_is_trained(tmp_path, tiny_tokenizer):
    """Openai-gpt keeps no cache; without a comparison nobody asks it to reply."""
    built("openai-gpt", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    stages = {"sft": {"adapter": None, "max_steps": 1, "save_strategy": "no"}}
    with pytest.raises(UserError, match="base: OpenAIGPTLMHeadModel cannot be sampled"):
        prepare_stage(make_project(tmp_path, tmp_path / "base", stages=stages), "sft")
    run_stage(make_project(tmp_path, tmp_path / "base", stages=stages, name="alone", evaluate=False), "sft")


def test_a_policy_whose_replies_are_wrong_is_refused_before_it_is_trained(tmp_path, tiny_tokenizer):
    """What no config tells: RWKV's state, handed on, gives other numbers."""
    strengthened(built("rwkv", vocab_size=len(tiny_tokenizer)), 4.0).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    project = make_project(tmp_path, tmp_path / "base", stages={"sft": {"adapter": None, "max_steps": 1}})
    with pytest.raises(UserError, match="RwkvForCausalLM cannot be sampled"):
        run_stage(project, "sft")
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


def test_a_stage_that_cannot_fold_says_so_once(tmp_path, tiny_bert, tiny_llama, capfd):
    stages = {"reward": {"model": {"name_or_path": str(tiny_bert), "adapter": None}, "max_steps": 2}}
    run_stage(make_project(tmp_path, tiny_llama, stages=stages), "reward")
    assert capfd.readouterr().err.count("runs unfolded: attention that is not causal") == 1


def test_packing_where_sequences_would_mix(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.setattr("rlhf.prefix_sharing.support.packing_check", lambda backbone: "states that run through")
    project = make_project(tmp_path, tiny_llama, stages={"sft": {"packing": True, "max_steps": 1}})
    with pytest.raises(UserError, match=r"stages.sft.packing: .* would see one another: states that run through"):
        run_stage(project, "sft")


def test_packing(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, stages={"sft": {"packing": True, "max_length": 128}})
    run_stage(project, "sft")
    metrics = record_of(project, "sft")["metrics"]
    assert metrics["loss"] < metrics["loss_before"]


def test_an_encoder_learns_labels(tmp_path, tiny_bert):
    rows = [{"text": f"{NAMES[n % 10]} is {'happy' if n % 2 else 'sad'} {n}", "label": n % 2} for n in range(40)]
    data = {"demonstrations": {"source": str(write_rows(tmp_path / "labels.jsonl", rows)), "holdout": 0.3}}
    stages = {"sft": {"max_steps": 30, "learning_rate": 1e-2}}
    project = make_project(
        tmp_path, tiny_bert, data=data, stages=stages, model={"name_or_path": str(tiny_bert), "adapter": None}
    )
    run_stage(project, "sft")
    metrics = record_of(project, "sft")["metrics"]
    assert metrics["accuracy"] == 1.0
    assert metrics["loss"] < metrics["loss_before"]
    model = AutoModelForSequenceClassification.from_pretrained(project.run_dir / "sft")
    stored = record_of(project, "sft")["probe"]
    assert probe.outputs(model, stored["ids"]) == pytest.approx(stored["outputs"], abs=1e-5)
    write_rows(tmp_path / "labels.jsonl", rows[1::2])
    with pytest.raises(UserError, match=r"every row of data.demonstrations has label 1"):
        prepare_stage(project, "sft")


@pytest.mark.parametrize("place", ["train", "eval"])
def test_a_class_far_beyond_the_others_is_refused_wherever_it_stands(tmp_path, tiny_bert, place):
    rows = [{"text": f"{NAMES[n % 10]} is here {n}", "label": n % 2} for n in range(40)]
    next(row for row in rows if side(row["text"], 0.3, seed=0) == place)["label"] = 10**9
    data = {"demonstrations": {"source": str(write_rows(tmp_path / "labels.jsonl", rows)), "holdout": 0.3}}
    with pytest.raises(UserError, match="labels up to 1000000000"):
        prepare_stage(make_project(tmp_path, tiny_bert, data=data, stages={"sft": {}}), "sft")


@pytest.mark.parametrize("adapter", [None, {"r": 4}])
def test_a_bert_is_the_reward_model_of_a_llama(tmp_path, tiny_llama, tiny_bert, adapter):
    stages = {
        "sft": {"max_steps": 1},
        "reward": {
            "model": {"name_or_path": str(tiny_bert), "adapter": adapter},
            "max_steps": 30,
            "learning_rate": 3e-3,
        },
    }
    project = make_project(tmp_path, tiny_llama, chats(), stages=stages)
    for stage in ("sft", "reward", "evaluate"):
        run_stage(project, stage)
    folder = project.run_dir / "reward"
    assert len(AutoTokenizer.from_pretrained(folder)) != len(AutoTokenizer.from_pretrained(tiny_llama))
    assert record_of(project, "reward")["metrics"]["accuracy"] > 0.9
    judge = RewardModel(folder)
    prompt = [{"role": "user", "content": "Ada asks about lamp 0."}]
    good, bad = judge([prompt, prompt], [
        [{"role": "assistant", "content": "Hello Ada, your lamp 0 is on its way."}],
        [{"role": "assistant", "content": "No idea at all."}],
    ])  # fmt: skip
    assert good > bad
    assert record_of(project, "evaluate")["metrics"]["judges"] == ["reward", "long"]


@pytest.mark.parametrize("adapter", [None, {"r": 4}])
def test_comparisons_of_labels_teach_an_encoder_which_one_is_right(tmp_path, tiny_bert, adapter, monkeypatch):
    """A text, the label that was preferred and another one; scored, it reads the ids that it was trained with."""
    right = {"lamp": ("late", "lost"), "kettle": ("lost", "late")}
    rows = [
        {"prompt": f"{thing} {number}", "chosen": chosen, "rejected": rejected}
        for number in range(50)
        for thing, (chosen, rejected) in right.items()
    ]
    stages = {"reward": {"max_steps": 200, "learning_rate": 3e-3, "per_device_train_batch_size": 32}}
    model = {"name_or_path": str(tiny_bert), "adapter": adapter}
    project = make_project(tmp_path, tiny_bert, rows, model=model, stages=stages, evaluate=False)
    trainers, plainly = [], run.run_training
    monkeypatch.setattr(
        run, "run_training", lambda trainer, context: trainers.append(trainer) or plainly(trainer, context)
    )
    run_stage(project, "reward")
    assert record_of(project, "reward")["metrics"]["accuracy"] > 0.9
    judge = RewardModel(project.run_dir / "reward")
    scored = {tuple(judge.codec.sequence(row["prompt"], row["chosen"])[0]) for row in rows}
    assert set(map(tuple, trainers[0].train_dataset["chosen_ids"])) < scored, "some rows are held out"
    late, lost = judge(["lamp 77"] * 2, ["late", "lost"])
    assert late > lost


def test_a_policy_cannot_be_an_encoder(tmp_path, tiny_bert):
    project = make_project(tmp_path, tiny_bert, stages={"dpo": {"max_steps": 1}})
    with pytest.raises(UserError, match=r"stages\.dpo: .*bert0 is a label policy"):
        run_stage(project, "dpo")


def test_a_reward_model_without_a_head_is_refused(tmp_path, tiny_llama):
    with pytest.raises(UserError, match="has no reward head with 1 output"):
        RewardModel(tiny_llama)


def test_everything_too_long_is_refused_with_the_reason(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, stages={"sft": {"max_length": 8}})
    with pytest.raises(
        UserError, match=r"no row of data.demonstrations is left|every row of data.demonstrations was dropped"
    ):
        run_stage(project, "sft")


def test_identical_sides_are_refused_when_nothing_else_is_there(tmp_path, tiny_llama):
    rows = [{"prompt": f"p{n}", "chosen": " same", "rejected": " same"} for n in range(5)]
    project = make_project(tmp_path, tiny_llama, rows, stages={"dpo": {}})
    with pytest.raises(UserError, match=r"every row of data.preferences was dropped: 5 × identical"):
        run_stage(project, "dpo")


def test_a_stage_without_its_data_is_refused(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, data={}, stages={"sft": {}})
    with pytest.raises(UserError, match=r"data\.demonstrations"):
        run_stage(project, "sft")


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_the_seed_decides_the_result(tmp_path, tiny_llama, stage):
    """Whatever the state of the random numbers before: the same seed gives the same files, another seed others."""
    options = {"max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
    found = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        project = make_project(tmp_path, tiny_llama, name=name, seed=seed, stages={stage: options})
        torch.manual_seed(len(found) + 100)
        run_stage(project, stage)
        found.append(record_of(project, stage)["artifact"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_run_that_diverges_is_stopped(tmp_path, tiny_llama, stage):
    options = {"learning_rate": 1e30, "max_grad_norm": 0, "optim": "sgd", "max_steps": 20, "logging_steps": 1}
    project = make_project(tmp_path, tiny_llama, stages={stage: options})
    with pytest.raises(Incident, match=r"of step \d is not finite, and the weights are not either"):
        run_stage(project, stage)
    assert not (project.run_dir / stage).exists()


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("dpo", {"adapter": {"r": 0}}, "r must be a whole number of at least 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_trains(tmp_path, tiny_llama, stage, options, message):
    project = make_project(tmp_path, tiny_llama, stages={stage: options})
    with pytest.raises(UserError, match=message):
        prepare_stage(project, stage)


def test_what_is_not_joined_may_be_anything(tmp_path, tiny_llama):
    """An adapter on a stage that trained all weights stands alone, so DoRA is no hindrance there."""
    options = {"max_steps": 1, "learning_rate": 1e-3, "save_strategy": "no"}
    dora = {"r": 2, "use_dora": True}
    stages = {"sft": {**options, "adapter": None}, "dpo": {**options, "adapter": dora}}
    project = make_project(tmp_path, tiny_llama, stages=stages)
    for stage in stages:
        run_stage(project, stage)
    joined = make_project(tmp_path, tiny_llama, name="joined", stages={**stages, "sft": options})
    run_stage(joined, "sft")
    with pytest.raises(UserError, match="use_dora cannot be joined"):
        run_stage(joined, "dpo")


def test_all_weights_train_after_a_parent_with_an_adapter(tmp_path, tiny_llama):
    """Merging an adapter leaves the base frozen; trained as it is, nothing would move."""
    options = {"max_steps": 2, "learning_rate": 1e-3, "save_strategy": "no"}
    project = make_project(tmp_path, tiny_llama, stages={"sft": options, "dpo": {**options, "adapter": None}})
    for stage in ("sft", "dpo"):
        run_stage(project, stage)
    base = load_file(tiny_llama / "model.safetensors")
    after = load_file(project.run_dir / "dpo/model.safetensors")
    unmoved = [name for name, tensor in after.items() if torch.equal(tensor, base[name])]
    assert not unmoved
