import json
import shutil

import pytest

from rlhf.errors import UserError
from rlhf.pipeline import contract


@pytest.fixture
def stage(tmp_path, tiny_llama):
    """A finished stage: an adapter for a local base."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    folder = tmp_path / "run/sft"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    record = {
        "stage": "sft", "artifact": contract.artifact_hash(folder),
        "identity": {"base": {"files": contract.artifact_hash(base)}},
        "lineage": {"base": str(base), "revision": None, "adapter": True},
    }  # fmt: skip
    contract.write_json(folder / contract.RECORD, record)
    return folder, base, record


def changed(base):
    config = base / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps"', '"rms_norm_epsilon"'))


def test_a_whole_stage_on_its_base_passes(stage):
    folder, _, record = stage
    assert contract.verify(folder) == record


def test_what_is_no_part_of_the_model_may_change(stage):
    folder, base, _ = stage
    (folder / "metrics.jsonl").write_text("{}")
    (base / "README.md").write_text("words")
    contract.verify(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json"])
def test_a_file_changed_or_added_is_refused(stage, name):
    folder, _, record = stage
    (folder / name).write_bytes(b"other")
    found = contract.artifact_hash(folder)[:12]
    with pytest.raises(UserError, match=rf"\(recorded {record['artifact'][:12]}, found {found}\); .* --force sft"):
        contract.verify(folder)


def test_a_changed_base_is_refused_with_both_hashes(stage):
    folder, base, record = stage
    changed(base)
    was, now = record["identity"]["base"]["files"][:12], contract.artifact_hash(base)[:12]
    with pytest.raises(UserError, match=rf"its adapter is for {base}, .* \(recorded {was}, found {now}\); put"):
        contract.verify(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"lineage": {"base": "ada/base", "revision": "v1", "adapter": True}},  # on the hub: a commit tells, not files
        {"lineage": None},
        {"identity": {"parents": {"sft": "abc"}}},  # its parent's contract has the base
    ],
)
def test_a_base_that_is_recorded_elsewhere_is_left_to_that(stage, change):
    folder, base, record = stage
    contract.write_json(folder / contract.RECORD, {**record, **change})
    changed(base)
    contract.verify(folder)


def test_whole_weights_need_no_base(stage):
    folder, base, record = stage
    contract.write_json(folder / contract.RECORD, {**record, "lineage": {**record["lineage"], "adapter": False}})
    changed(base)
    contract.verify(folder)


def test_no_record_and_a_broken_one(tmp_path):
    with pytest.raises(UserError, match="no finished stage is there"):
        contract.verify(tmp_path)
    (tmp_path / contract.RECORD).write_text('{"stage": ')
    with pytest.raises(UserError, match=r"not valid JSON; delete .* to run the stage again"):
        contract.verify(tmp_path)


@pytest.mark.parametrize("text", ["[]", "1", "null"])
def test_a_record_of_another_shape_is_damaged(tmp_path, text):
    (tmp_path / contract.RECORD).write_text(text)
    with pytest.raises(UserError, match=r"stage\.json: holds no JSON object; delete .* to run"):
        contract.read_record(tmp_path)


def test_the_keys_that_differ_are_named():
    before = {"trainer": {"beta": 0.1, "seed": 1}, "parents": {"sft": "a"}}
    now = json.loads(json.dumps(before))
    now["trainer"]["beta"] = 0.2
    now["base"] = {"files": "x"}
    assert contract.changes(before, now) == ["trainer.beta", "base"]
