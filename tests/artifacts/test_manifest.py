import ast
import json
import os
import re
import shutil

import pytest

import rlhf
from rlhf.artifacts.manifest import (
    MANIFEST,
    artifact_hash,
    check_records,
    read_manifest,
    verify,
    write_manifest,
)
from rlhf.errors import UserError
from rlhf.pipeline.stage import guarded
from rlhf.workflow import stage_of
from tests.support.manifests import finish, manifest


@pytest.fixture
def stage(tmp_path, tiny_llama):
    """A finished stage: an adapter for a local base."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    folder = tmp_path / "run/sft"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    lineage = {"base": str(base), "revision": None, "adapter": True}
    return folder, base, finish(folder, identity={"base": {"files": artifact_hash(base)}}, lineage=lineage)


def changed(base):
    config = base / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps"', '"rms_norm_epsilon"'))


def test_a_whole_stage_on_its_base_passes(stage):
    folder, _, record = stage
    assert verify(folder).items() >= record.items()


def test_what_is_no_part_of_the_model_may_change(stage):
    folder, base, _ = stage
    (folder / "metrics.jsonl").write_text("{}")
    (base / "README.md").write_text("words")
    verify(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json"])
def test_a_file_changed_or_added_is_refused(stage, name):
    folder, _, record = stage
    (folder / name).write_bytes(b"other")
    now = artifact_hash(folder)[:12]
    with pytest.raises(UserError, match=rf"\(recorded {record['artifact'][:12]}, found {now}\); .* --force sft"):
        verify(folder)


def test_a_changed_base_is_refused_with_both_hashes(stage):
    folder, base, record = stage
    changed(base)
    was, now = record["identity"]["base"]["files"][:12], artifact_hash(base)[:12]
    with pytest.raises(UserError, match=rf"its adapter is for {base}, .* \(recorded {was}, found {now}\); put"):
        verify(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"lineage": {"base": "ada/base", "revision": "v1", "adapter": True}},  # on the hub: a commit tells, not files
        {"lineage": None},
        {"identity": {"parents": {"sft": "abc"}}},  # its parent's manifest has the base
    ],
)
def test_a_base_that_is_recorded_elsewhere_is_left_to_that(stage, change):
    folder, base, record = stage
    write_manifest(folder, {**record, **change})
    changed(base)
    verify(folder)


def test_whole_weights_need_no_base(stage):
    folder, base, record = stage
    write_manifest(folder, {**record, "lineage": {**record["lineage"], "adapter": False}})
    changed(base)
    verify(folder)


def test_no_record_and_a_broken_one(tmp_path):
    with pytest.raises(UserError, match="no finished stage is there"):
        verify(tmp_path)
    (tmp_path / MANIFEST).write_text('{"stage": ')
    with pytest.raises(UserError, match=r"not valid JSON; delete .* to run the stage again"):
        verify(tmp_path)


@pytest.mark.parametrize("text", ["[]", "1", "null"])
def test_a_record_of_another_shape_is_damaged(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"stage\.json: holds no JSON object; delete .* to run"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("field", ["stage", "artifact", "hash", "identity", "parents", "versions", "metrics"])
@pytest.mark.parametrize("value", [None, 7])
def test_a_missing_field_and_one_of_another_type_are_named(tmp_path, field, value):
    write_manifest(tmp_path, {**manifest("sft"), field: value})
    with pytest.raises(UserError, match=rf"stage\.json: has no '{field}', .*; delete .* to run the stage again"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("leaves", 7), ("order", "x"), ("label", None), ("repetition", "1")])
def test_a_described_stage_has_its_types(tmp_path, field, value):
    write_manifest(tmp_path, {**manifest("sft"), field: value})
    with pytest.raises(UserError, match=rf"stage\.json: '{field}' is of another type; delete .* to run"):
        read_manifest(tmp_path)


def test_an_empty_object_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / MANIFEST).write_text("{}")
    assert guarded(lambda: verify(tmp_path)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_manifest_of_another_version_without_a_field_names_both_versions(tmp_path):
    fields = manifest("sft", versions={"rlhf": "0.0.1"})
    del fields["identity"]
    write_manifest(tmp_path, fields)
    with pytest.raises(UserError, match=rf"rlhf 0\.0\.1 .* 'identity'.* rlhf {re.escape(rlhf.__version__)} "):
        read_manifest(tmp_path)


def test_further_fields_are_kept(tmp_path):
    written = finish(tmp_path, notes={"of": "the user's"})
    assert read_manifest(tmp_path).items() >= written.items()
    assert written["notes"] == {"of": "the user's"}


@pytest.mark.parametrize("name", ["sft", "dpo@1", "reward", "gate", "evaluate"])
def test_a_known_stage_of_an_earlier_version_is_described_as_declared(tmp_path, name):
    fields = manifest(name)
    for key in ("kind", "repetition", "order", "label", "method", "leaves", "trainer_config"):
        fields.pop(key, None)
    write_manifest(tmp_path, fields)
    read, stage = read_manifest(tmp_path), stage_of(name)
    described = [read[key] for key in ("order", "label", "method", "leaves", "trainer_config")]
    assert described == [stage.order, stage.label, stage.method, stage.leaves, list(stage.trainer)]


@pytest.mark.parametrize(
    ("fields", "leaves"),
    [
        ({"metrics": {"policies": ["sft"]}}, "comparison"),
        ({"metrics": {"passed": True}}, "verdict"),
        ({"metrics": {"parameters": 7}}, "base"),
        ({"lineage": {}, "data": {"preferences": {}}, "architectures": ["BertForSequenceClassification"]}, "scorer"),
        ({"lineage": {}, "data": {"demonstrations": {}}, "architectures": ["BertForSequenceClassification"]}, "policy"),
        ({"lineage": {}, "data": {"preferences": {}}, "architectures": ["LlamaForCausalLM"]}, "policy"),
        ({"lineage": {}, "data": {"preferences": {}}, "task_type": "SEQ_CLS"}, "scorer"),
    ],
)
def test_what_an_earlier_version_did_not_record_follows_from_the_rest(tmp_path, fields, leaves):
    folder = tmp_path / "thing@2"
    folder.mkdir()
    if "task_type" in fields:
        (folder / "adapter_config.json").write_text(json.dumps({"task_type": fields["task_type"]}))
    (folder / "config.json").write_text(json.dumps({"architectures": fields.get("architectures")}))
    finish(folder, **fields)
    read = read_manifest(folder)
    names = ("kind", "repetition", "method", "leaves", "trainer_config")
    assert [read[name] for name in names] == ["thing", 2, "", leaves, []]
    finish(folder, **{**fields, "leaves": "policy", "method": "A thing"})
    assert (read_manifest(folder)["leaves"], read_manifest(folder)["method"]) == ("policy", "A thing")


def test_one_module_names_the_file(root):
    """Every other module goes through it; docstrings may name the file."""
    files = []
    for path in sorted((root / "rlhf").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose]
        files += [path.name for node in constants if isinstance(node.value, str) and MANIFEST in node.value]
    assert files == ["manifest.py"]


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    finish(tmp_path / "sft", metrics={"loss": 0.25, "by": {2: 1.0, 10: 2.0}})
    path = tmp_path / "sft" / MANIFEST
    written = path.read_text()
    assert read_manifest(tmp_path / "sft")["metrics"]["loss"] == 0.25
    path.write_text(written.replace("0.25", "0.24"))
    with pytest.raises(UserError, match=r"stage\.json: changed since the stage finished; .* delete .* to run"):
        read_manifest(tmp_path / "sft")
    fields = json.loads(written)
    del fields["sha256"]  # of an earlier version
    path.write_text(json.dumps(fields))
    assert read_manifest(tmp_path / "sft")["metrics"]["by"] == {"2": 1.0, "10": 2.0}


def test_a_pipe_for_a_manifest_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(UserError, match=r"stage\.json: is no file"):
        read_manifest(tmp_path)


def test_what_a_stage_wrote_down_is_recognised(tmp_path):
    folder = tmp_path / "evaluate"
    folder.mkdir()
    for name in ("samples.jsonl", "metrics.jsonl", "ledger.json"):
        (folder / name).write_text("{}\n")
    finish(folder)
    manifest = read_manifest(folder)
    (folder / "later.jsonl").touch()
    (folder / "metrics.jsonl").unlink()
    check_records(folder, manifest)
    (folder / "samples.jsonl").write_text("{ }\n")
    with pytest.raises(UserError, match=r"samples\.jsonl: changed since the stage finished; .* --force evaluate"):
        check_records(folder, manifest)
