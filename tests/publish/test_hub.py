import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants, snapshot_download
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlhf.artifacts.manifest import read_manifests, versions
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.adapters import check_joinable, whole_modules
from rlhf.models.tasks import CAUSAL_LM, SPAN
from rlhf.publish import build, hub
from rlhf.publish.card import Subject, _limits, public_base, publishable
from tests.support.damage import record_of
from tests.support.hub_server import READ_ONLY, TOKEN, HubServer, Repository
from tests.support.reports import JUDGE_REPORT
from tests.support.runs import SEQUENCES, add_stage, tiny_run

ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "report.json",
           "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
MERGED = {*ADAPTER, "config.json", "generation_config.json", "model.safetensors"} - {
    "adapter_config.json",
    "adapter_model.safetensors",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_llama):
    return tiny_run(tmp_path_factory.mktemp("made"), tiny_llama)


@pytest.fixture
def run(made, tmp_path):
    """A copy of the finished run, and what its models gave in memory."""
    run_dir, outputs = made
    return Path(shutil.copytree(run_dir, tmp_path / "runs" / "tiny")), outputs


@pytest.fixture
def server(monkeypatch):
    """A hub on this machine that the real client, in this process, takes for the hub."""
    with HubServer() as hub_server:
        template = hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub_server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub_server


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr("socket.socket.connect", refuse)


def names(files):
    return {name for name, _ in files}


def outputs_of(model):
    return probe.outputs(model.eval(), SEQUENCES)


def downloaded(server, to, folder):
    return Path(
        snapshot_download(to, endpoint=server.url, token=TOKEN, cache_dir=folder / "cache", local_dir=folder / "got")
    )


def code_of(card, places):
    """The Python of a card, with names replaced by places on this machine."""
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    for name, place in places.items():
        code = code.replace(f'"{name}"', repr(str(place)))
    return code


def as_plain_peft(base, folder, auto=AutoModelForCausalLM, **arguments):
    return PeftModel.from_pretrained(auto.from_pretrained(base, dtype="float32", **arguments), folder)


def test_published_through_the_real_client_the_adapter_is_the_run(server, run, tiny_llama, tmp_path):
    run_dir, outputs = run
    script = (
        "import sys; from pathlib import Path; from rlhf.publish.hub import publish\n"
        "print(publish(Path(sys.argv[1]), 'dpo', 'ada/tiny-dpo'))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment.update(HF_ENDPOINT=server.url, HF_HUB_DISABLE_XET="1", HF_TOKEN=TOKEN, HF_HOME=str(tmp_path / "home"))
    done = subprocess.run([sys.executable, "-c", script, run_dir], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"url='{server.url}/ada/tiny-dpo'" in done.stdout

    repository = server.repositories["ada/tiny-dpo"]
    assert repository.private
    assert set(repository.files) == {*ADAPTER, ".gitattributes"}
    assert [commit["summary"] for commit in repository.commits] == ["Publish dpo of tiny"]
    for name, content in repository.files.items():
        if name != ".gitattributes":
            assert content == (run_dir / "published" / "dpo" / name).read_bytes()

    model = as_plain_peft(tiny_llama, downloaded(server, "ada/tiny-dpo", tmp_path))
    assert outputs_of(model) == pytest.approx(outputs["dpo"], abs=1e-5, rel=1e-5)
    assert outputs["dpo"] != pytest.approx(outputs["sft"], abs=1e-2)


def test_logits_of_the_published_adapter_equal_the_runs_own(run, tiny_llama, tmp_path):
    run_dir, _ = run
    build.build_folder(run_dir, "dpo", tmp_path / "out")
    ids = torch.tensor([SEQUENCES[0]])
    with torch.no_grad():
        published = as_plain_peft(tiny_llama, tmp_path / "out").eval()(ids).logits
        own = as_plain_peft(tiny_llama, run_dir / "dpo").eval()(ids).logits
    torch.testing.assert_close(published, own, atol=1e-5, rtol=0)


def test_merged_weights_and_a_reward_model_come_back_the_same(server, run, tiny_llama, tmp_path):
    run_dir, outputs = run
    merged = hub.publish(run_dir, "dpo", "ada/merged", merge=True, private=False, token=TOKEN)
    assert names(merged.files) == MERGED
    assert not merged.private
    assert not server.repositories["ada/merged"].private
    model = AutoModelForCausalLM.from_pretrained(downloaded(server, "ada/merged", tmp_path / "a"), dtype="float32")
    assert outputs_of(model) == pytest.approx(outputs["dpo"], abs=1e-5, rel=1e-5)

    hub.publish(run_dir, "reward", "ada/judge", token=TOKEN)
    got = downloaded(server, "ada/judge", tmp_path / "b")
    model = as_plain_peft(tiny_llama, got, AutoModelForSequenceClassification, num_labels=1)
    assert outputs_of(model) == pytest.approx(outputs["reward"], abs=1e-5)

    hub.publish(run_dir, "reward", "ada/judge-merged", merge=True, token=TOKEN)
    got = downloaded(server, "ada/judge-merged", tmp_path / "c")
    model = AutoModelForSequenceClassification.from_pretrained(got, dtype="float32")
    assert model.config.num_labels == 1
    assert outputs_of(model) == pytest.approx(outputs["reward"], abs=1e-5)


def test_a_second_push_of_merged_weights_leaves_no_adapter_behind(server, run):
    run_dir, _ = run
    hub.publish(run_dir, "sft", "ada/both", token=TOKEN)
    server.repositories["ada/both"].files["picture.png"] = b"mine"
    hub.publish(run_dir, "sft", "ada/both", merge=True, token=TOKEN)
    assert set(server.repositories["ada/both"].files) == {*MERGED, ".gitattributes", "picture.png"}


def test_an_existing_public_repository_is_not_pushed_to_by_default(server, run):
    run_dir, _ = run
    server.repositories["ada/open"] = Repository(private=False)
    with pytest.raises(UserError, match=r"ada/open: is there already and is public"):
        hub.publish(run_dir, "sft", "ada/open", token=TOKEN)
    assert not server.repositories["ada/open"].files
    assert hub.publish(run_dir, "sft", "ada/open", private=False, token=TOKEN).url


def test_a_dry_run_touches_no_network_and_shows_what_would_go(run, no_network, tmp_path):
    run_dir, _ = run
    result = hub.publish(run_dir, "dpo", None, dry_run=True)
    assert result.url is None
    assert result.verified
    assert result.folder == run_dir / "published" / "dpo"
    assert names(result.files) == ADAPTER
    assert dict(result.files) == {path.name: path.stat().st_size for path in result.folder.iterdir()}
    assert [path.name for path in (run_dir / "published").iterdir()] == ["dpo"]


def test_no_secret_and_no_path_of_this_machine_is_in_any_file(run, tiny_llama, tmp_path):
    run_dir, base = run[0], tiny_llama
    build.build_folder(run_dir, "dpo", tmp_path / "out")
    build.build_folder(run_dir, "dpo", tmp_path / "whole", merge=True)
    secrets = [b"hf_xxx", bytes(Path.home()), bytes(tmp_path), bytes(base), b"private prompt"]
    for file in (*(tmp_path / "out").iterdir(), *(tmp_path / "whole").iterdir()):
        assert not [secret for secret in secrets if secret in file.read_bytes()], file.name
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["stages"]["dpo"]["rows"]["preferences"]["examples"][0]["origin"] == "dpo.jsonl:7"
    assert "samples" not in report


def test_a_token_that_gets_into_a_file_stops_everything(run, tmp_path):
    run_dir, _ = run
    record = record_of(run_dir / "sft")
    record["config"]["trainer"]["run_name"] = TOKEN
    (run_dir / "sft" / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="holds a token"):
        hub.publish(run_dir, "sft", None, dry_run=True)
    assert not (run_dir / "published").exists()


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", r"^ada/x: the hub does not accept the token; run `hf auth login`: Invalid username"),
     (READ_ONLY, r"^ada/x: the token may not write there; it needs write access: You don't have")],
)  # fmt: skip
def test_a_refused_token_is_one_line(server, run, token, message):
    run_dir, _ = run
    with pytest.raises(UserError, match=message) as caught:
        hub.publish(run_dir, "sft", "ada/x", token=token)
    assert "\n" not in str(caught.value)
    assert token not in str(caught.value)
    assert not server.repositories


def test_no_token_no_network_and_a_bad_id_are_one_line_each(server, run, monkeypatch, tmp_path):
    run_dir, _ = run
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no hub token: run `hf auth login`"):
        hub.publish(run_dir, "sft", "ada/x")
    for bad in ("no-owner", "a/b/c", "ada/.x..", "ada/ sp ace"):
        with pytest.raises(UserError, match="is no hub id such as user/name"):
            hub.publish(run_dir, "sft", bad, token=TOKEN)
    with pytest.raises(UserError, match="name where to publish"):
        hub.publish(run_dir, "sft", None, token=TOKEN)
    assert not server.requests
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^ada/x: cannot reach http://127.0.0.1:9: "):
        hub.publish(run_dir, "sft", "ada/x", token=TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^ada/x: cannot publish while HF_HUB_OFFLINE is set"):
        hub.publish(run_dir, "sft", "ada/x", token=TOKEN)


@pytest.mark.parametrize(("stage", "merge"), [("dpo", False), ("dpo", True), ("reward", False), ("reward", True)])
def test_the_code_of_the_card_runs(run, stage, merge, tiny_llama, tmp_path, capsys):
    run_dir, outputs = run
    build.build_folder(run_dir, stage, tmp_path / "out", merge=merge, to="ada/tiny")
    card, space = (tmp_path / "out" / "README.md").read_text(), {}
    exec(code_of(card, {"ada/tiny": tmp_path / "out", f"./{tiny_llama.name}": tiny_llama}), space)
    assert outputs_of(space["model"]) == pytest.approx(outputs[stage], abs=1e-5, rel=1e-5)
    assert capsys.readouterr().out.strip()


def test_the_card_says_what_it_is_where_it_comes_from_and_whether_it_helps(run, tiny_llama, tmp_path):
    run_dir, _ = run
    build.build_folder(run_dir, "dpo", tmp_path / "out", to="ada/tiny")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["rlhf", "trl", "dpo", "lora"]
    assert card.data.datasets == ["someone/pairs"]
    assert card.data.base_model is None  # a local folder is no model of the hub
    assert card.data.license is None
    text = card.text
    sft, dpo = (json.loads((run_dir / name / "stage.json").read_text())["artifact"][:12] for name in ("sft", "dpo"))
    assert "DPO is better than SFT on gold: +0.30" in text
    assert "| DPO vs SFT | gold |" in text
    assert f"| **dpo** (this) | sft `{sft}` | 900 | 3 | `{dpo}` | 1 min 1 s |" in text
    assert f"| sft | `./{tiny_llama.name}` |" in text
    assert "learning_rate 0.0001, adapter {r: 4}" in text
    assert "| preferences | dpo.jsonl | dpo | – | SHA-256 `abab" in text
    assert "was a local folder and is not on the hub" in text
    assert "`model.safetensors` SHA-256 `" in text
    assert "torch 2." in text
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        f"./{tiny_llama.name}"
    )
    for blank in ("\n\n\n", "None", "{{", "{%"):
        assert blank not in text


def test_a_base_with_a_licence_passes_it_on(run, tiny_llama, tmp_path):
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: mit\n---\nA base.\n")
    add_stage(tmp_path / "runs" / "other", "sft", base)
    build.build_folder(tmp_path / "runs" / "other", "sft", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit"
    assert "was not compared with another" in card.text


def test_whole_weights_are_published_as_they_are_and_an_adapter_on_them_only_merged(tiny_llama, tmp_path):
    run_dir = tmp_path / "runs" / "full"
    add_stage(run_dir, "sft", tiny_llama, adapter=False)
    outputs = add_stage(run_dir, "dpo", tiny_llama, "sft")
    assert names(build.build_folder(run_dir, "sft", tmp_path / "sft").files) == MERGED
    assert ModelCard.load(tmp_path / "sft" / "README.md").data.library_name == "transformers"
    with pytest.raises(UserError, match=r"its base is .*sft, a stage of a run, .* --merge"):
        build.build_folder(run_dir, "dpo", tmp_path / "dpo")
    assert not (tmp_path / "dpo").exists()
    build.build_folder(run_dir, "dpo", tmp_path / "dpo", merge=True)
    assert f"whole weights, trained from `./{tiny_llama.name}`" in (tmp_path / "dpo" / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dpo", dtype="float32")
    assert outputs_of(model) == pytest.approx(outputs, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("prompts", ["messages", "text"])
def test_an_encoder_classifier_and_an_encoder_reward_model(tiny_bert, tmp_path, prompts):
    run_dir = tmp_path / "runs" / "bert"
    heads, fields = {"sft": 3, "reward": 1}, {"modules_to_save": ["pooler", "classifier"]}  # the base has no pooler
    outputs = {
        stage: add_stage(run_dir, stage, tiny_bert, labels=n, adapter=fields, prompt_format=prompts)
        for stage, n in heads.items()
    }
    for stage, labels in heads.items():
        assert build.build_folder(run_dir, stage, tmp_path / stage).verified
        build.build_folder(run_dir, stage, tmp_path / f"{stage}-merged", merge=True)
        model = as_plain_peft(tiny_bert, tmp_path / stage, AutoModelForSequenceClassification, num_labels=labels)
        assert outputs_of(model) == pytest.approx(outputs[stage], abs=1e-5)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"{stage}-merged", dtype="float32")
        assert outputs_of(model) == pytest.approx(outputs[stage], abs=1e-5)
        for folder in (stage, f"{stage}-merged"):
            card = (tmp_path / folder / "README.md").read_text()
            names: dict = {}
            exec(code_of(card, {"path/to/this/folder": tmp_path / folder, f"./{tiny_bert.name}": tiny_bert}), names)
            if stage == "reward" and prompts == "text":
                ids = Codec(AutoTokenizer.from_pretrained(tmp_path / folder), encoder=True).sequence(
                    "A prompt", "A completion"
                )[0]
                assert names["inputs"]["input_ids"].tolist() == [ids]
    assert AutoTokenizer.from_pretrained(tmp_path / "sft").pad_token == "[PAD]"


def test_a_head_that_two_stages_trained_is_that_of_the_second(tiny_bert, tmp_path):
    run_dir, head = tmp_path / "runs" / "bert", {"modules_to_save": ["pooler", "classifier"]}
    add_stage(run_dir, "sft", tiny_bert, labels=3, adapter=head)
    check_joinable(run_dir / "sft")
    assert {"classifier", "pooler"} <= set(whole_modules(run_dir / "sft"))
    outputs = add_stage(run_dir, "ppo", tiny_bert, "sft", labels=3, adapter=head)
    assert build.build_folder(run_dir, "ppo", tmp_path / "out").verified
    model = as_plain_peft(tiny_bert, tmp_path / "out", AutoModelForSequenceClassification, num_labels=3)
    assert outputs_of(model) == pytest.approx(outputs, abs=1e-5)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_span_policy_is_published_as_question_answering(tiny_bert, tmp_path, adapter, capsys):
    run_dir = tmp_path / "runs" / "span"
    outputs = add_stage(run_dir, "sft", tiny_bert, adapter=adapter, task=SPAN)
    if adapter:
        outputs = add_stage(run_dir, "ppo", tiny_bert, "sft", task=SPAN, adapter={"modules_to_save": ["qa_outputs"]})
    folder = tmp_path / "out"
    assert build.build_folder(run_dir, "ppo" if adapter else "sft", folder).verified
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "question-answering"
    assert ", question answering: " in card.text
    model = as_plain_peft(tiny_bert, folder, AutoModelForQuestionAnswering) if adapter else None
    model = model or AutoModelForQuestionAnswering.from_pretrained(folder, dtype="float32")
    assert outputs_of(model) == pytest.approx(outputs, abs=1e-5)
    exec(code_of(card.text, {"path/to/this/folder": folder, f"./{tiny_bert.name}": tiny_bert}), {})
    assert capsys.readouterr().out.strip() in "no answer, Ada asks."


@pytest.mark.parametrize("stage", ["gold_reward", "reward@1", "a_stage_of_the_users_own"])
@pytest.mark.parametrize("merge", [False, True])
def test_every_stage_that_learns_a_reward_is_published_as_one(tiny_bert, tmp_path, stage, merge):
    run_dir = tmp_path / "runs" / "bert"
    add_stage(run_dir, stage, tiny_bert, labels=1, adapter={"modules_to_save": ["pooler", "classifier"]})
    build.build_folder(run_dir, stage, tmp_path / "out", merge=merge)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.tags == ["rlhf", "trl", "reward-model", *([] if merge else ["lora"])]
    assert f"Method of {stage}: " in card.text
    assert "logits[0, 0].item()" in card.text
    assert "argmax" not in card.text


@pytest.mark.parametrize(("labels", "named"), [(0, "A policy: "), (1, "A reward model: "), (3, "A text classifier: ")])
def test_a_stage_of_a_version_that_recorded_no_method_is_named_by_its_kind(tiny_llama, tmp_path, labels, named):
    run_dir = tmp_path / "runs" / "old"
    add_stage(run_dir, "sft", tiny_llama, labels=labels, method="", trainer_config=[])
    build.build_folder(run_dir, "sft", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert named in card.text
    assert card.data.tags == ["rlhf", "reward-model" if labels == 1 else "sft", "lora"]


def test_an_upgrade_in_the_middle_of_training_is_told(tiny_llama, tmp_path):
    run_dir = tmp_path / "runs" / "long"
    add_stage(run_dir, "sft", tiny_llama, earlier_versions=[{**versions(), "torch": "2.0.1"}])
    build.build_folder(run_dir, "sft", tmp_path / "out")
    assert "continued after an upgrade from torch 2.0.1." in (tmp_path / "out" / "README.md").read_text()


def test_a_judge_that_learned_with_the_policy_is_called_partial(made, tmp_path):
    run_dir = Path(shutil.copytree(made[0], tmp_path / "runs" / "tiny"))
    subject = Subject(
        run="tiny", stage="dpo", kind="policy", task=CAUSAL_LM, manifests=read_manifests(run_dir), labels=1,
        adapter=True, base=None, revision=None, dtype="float32", encoder=False, added_tokens=False, base_files={},
        verified=True,
    )  # fmt: skip
    rows = [{"policy": "dpo", "judge": judge} for judge in ("reward", "gold")]

    def limits(**changes):
        changed = {"dpo": {**subject.manifests["dpo"], **changes}}
        manifests = {**subject.manifests, **changed}
        return "\n".join(_limits(replace(subject, manifests=manifests), {"comparisons": rows}))

    same = subject.manifests["reward"]["data"]
    assert "learned from the same preferences" not in limits()
    assert "`reward` learned from the same preferences" in limits(data=same)
    assert "learned from the same preferences" not in limits(data=same, identity={"half": 1})
    assert "trained to score high with `reward`" in limits(parents={"reward": "abc"})
    config = subject.manifests["dpo"]["config"]
    scored = {"parents": {"reward": "abc"}, "config": {**config, "stage": {"checkpoint_judge": "reward"}}}
    assert "`reward`" not in limits(**scored)
    scored["config"]["stage"]["select"] = "best"
    assert "`reward` chose among the policy's checkpoints" in limits(**scored)
    assert "trained to score high" not in limits(**scored)


def test_the_address_of_a_judge_stays_at_home(run, tmp_path):
    run_dir, _ = run
    record = record_of(run_dir / "evaluate")
    record["metrics"]["comparing"] = {"judge": {**JUDGE_REPORT, "endpoint": "http://gpu7.corp.internal:8000/v1"}}
    record["config"]["evaluate"]["rewards"] = {"judge": {"endpoint": "http://gpu7.corp.internal:8000/v1"}}
    (run_dir / "evaluate" / "stage.json").write_text(json.dumps(record))
    build.build_folder(run_dir, "sft", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["comparing"]["judge"]["model"] == "judge-70b"
    for path in (tmp_path / "out").glob("*"):
        assert b"corp.internal" not in path.read_bytes(), path.name


def test_what_is_not_the_run_any_more_is_refused(run, tiny_llama, tmp_path):
    run_dir, _ = run
    weights = tmp_path / "runs" / "broken" / "sft"
    shutil.copytree(run_dir / "sft", weights)
    record = record_of(weights)
    record["probe"]["outputs"][0] += 1
    (weights / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="the model scores its probe sequence"):
        hub.publish(weights.parent, "sft", None, dry_run=True)
    assert not (weights.parent / "published").exists()

    shutil.rmtree(run_dir / "sft")
    add_stage(run_dir, "sft", tiny_llama, seed=4, artifact="f" * 64)
    with pytest.raises(UserError, match=r"dpo: was made from sft .*, which is f{12} now; bring the run up"):
        build.build_folder(run_dir, "dpo", tmp_path / "out")
    with pytest.raises(UserError, match=r"ppo: no finished stage is there"):
        build.build_folder(run_dir, "ppo", tmp_path / "out")


def test_public_names_of_local_bases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "base").mkdir(parents=True)
    assert public_base("data/base") == "./data/base"
    assert public_base("recipes/../data/base") == "./data/base"
    assert public_base(str(tmp_path / "data" / "base")) == "./base"
    assert public_base("../elsewhere/base") == "./base"
    assert public_base("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"


def test_paths_are_cut_and_nothing_else_is():
    paths = ["/srv/u/x.jsonl:12", "~/t/gold.py:score", "C:\\u\\x.csv", "at /srv/u/x.jsonl, line 3"]
    rest = {"b/c": 1, "url": "https://hf.co/a/b", "ratio": "a/b 1/2", "relative": "./data/base"}
    cut = ["x.jsonl:12", "gold.py:score", "x.csv", "at x.jsonl, line 3"]
    assert publishable({"paths": paths, **rest}) == {"paths": cut, **rest}
