"""`rlhf init` writes a project that loads, asks only for what it cannot know, and leaves nothing half-written."""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest
import yaml

from rlhf.config.load import load_project
from rlhf.init.draft import Batch

PAIRS = [{"question": f"Is train {n} late?", "good": f"Train {n} is late.", "bad": "No idea."} for n in range(20)]
RATED = [{"question": f"Is train {n} late?", "reply": f"Train {n} is.", "stars": 1 + n % 5} for n in range(20)]


@pytest.fixture
def unseen(monkeypatch) -> str:
    """A model on a hub that cannot be reached: nothing of it is looked at, which saves its time."""
    monkeypatch.setattr("rlhf.network.hub_resolves", lambda: False)
    return "nobody/Quite-7B"


def settings_of(path="x.yaml"):
    """The YAML as it stands, after it was loaded as a project."""
    load_project(path)
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def test_a_project_of_pairs(rlhf, put, tiny_llama):
    done = rlhf("init", put("pairs.jsonl", PAIRS), "--model", tiny_llama, "--out", "x.yaml")
    assert done.code == 0, done.err
    tree = settings_of()
    assert list(tree["stages"]) == ["sft", "dpo"]
    assert tree["data"]["preferences"] == {
        "source": "pairs.jsonl", "format": "preference",
        "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}, "chat": True, "holdout": 0.1,
    }  # fmt: skip
    assert tree["stages"]["dpo"]["max_length"] % 16 == 0
    assert "prompt: Is train 0 late?" in done.out
    assert "better: Train 0 is late." in done.out
    assert done.out.splitlines()[-2:] == ["  rlhf check x.yaml", "  rlhf run x.yaml"]
    assert sorted(path.name for path in Path().iterdir()) == ["pairs.jsonl", "x.yaml"]


def test_every_line_has_its_reason(rlhf, put, tiny_llama):
    rlhf("init", put("pairs.jsonl", PAIRS), "--model", tiny_llama, "--to", "sft,reward,dpo,ppo", "--out", "x.yaml")
    lines = Path("x.yaml").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 120
    for number, line in enumerate(lines):
        headings = ("model:", "data:")
        assert "#" in line or "#" in lines[number - 1] or line in headings, line


@pytest.mark.parametrize("suffix", ["csv", "jsonl.gz", "json", "parquet", "folder"])
def test_files_of_every_kind(rlhf, put, unseen, suffix):
    name = f"rows.{suffix}"
    if suffix == "csv":
        with Path(name).open("w", newline="") as file:
            writer = csv.DictWriter(file, PAIRS[0])
            writer.writeheader()
            writer.writerows(PAIRS)
    elif suffix == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(PAIRS), name)
    elif suffix == "folder":
        put(f"{name}/pairs.jsonl", PAIRS)
    else:
        text = json.dumps(PAIRS) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in PAIRS)
        Path(name).write_bytes(gzip.compress(text.encode()) if suffix == "jsonl.gz" else text.encode())
    done = rlhf("init", name, "--model", unseen, "--to", "dpo", "--out", "x.yaml")
    assert done.code == 0, done.err
    assert settings_of()["data"]["preferences"]["columns"]["chosen"] == "good"


def test_a_folder_of_splits_trains_on_one_and_compares_on_the_other(rlhf, put, unseen):
    rows = [{"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(30)]
    put("maths/train.jsonl", rows[:20])
    put("maths/test.jsonl", rows[20:])
    done = rlhf("init", "maths", "--model", unseen, "--to", "sft,ppo", "--out", "x.yaml")
    assert done.code == 0, done.err
    tree = settings_of()
    assert tree["data"]["demonstrations"]["split"] == "train"
    assert tree["data"]["prompts"] == {"source": "maths", "split": "test"}
    assert tree["rewards"] == {"right": {"function": "rlhf.rewards.exact_match:exact_match"}}
    assert tree["stages"]["ppo"]["rewards"] == {"right": 1.0}


def test_what_only_the_user_knows_is_a_flag_or_a_question(rlhf, put, unseen):
    rated = put("rated.jsonl", RATED)
    words = ("init", rated, "--model", unseen, "--to", "kto", "--out", "x.yaml")
    refused = rlhf(*words)
    assert refused.code == 2
    assert refused.error.startswith(
        "--good is missing, and there is no terminal to ask in: rated.jsonl: from which 'stars'"
    )
    assert not Path("x.yaml").exists()
    assert rlhf(*words, "--good", "4").code == 0
    by_flag = settings_of()
    assert by_flag["data"]["feedback"]["values"]["label"] == {str(n): n >= 4 for n in range(1, 6)}
    typed = rlhf(*words, "--force", typed="4\n\n")  # the rating, and Enter for the proposal
    assert typed.code == 0, typed.err
    assert settings_of() == by_flag
    assert rlhf("init", rated, "--model", unseen, "--good", "none", "--out", "y.yaml").code == 0
    assert list(settings_of("y.yaml")["stages"]) == ["sft"]


@pytest.mark.parametrize(
    ("good", "weight"), [(5, {"desirable_weight": 3.0}), (15, {"undesirable_weight": 3.0}), (10, {}), (11, {})]
)
def test_rare_judgements_count_for_more(rlhf, put, unseen, good, weight):
    rows = [{"prompt": f"{n}?", "completion": "Yes.", "label": n < good} for n in range(20)]
    assert rlhf("init", put("judged.jsonl", rows), "--model", unseen, "--to", "kto", "--out", "x.yaml").code == 0
    stage = settings_of()["stages"]["kto"]
    assert {key: value for key, value in stage.items() if key.endswith("able_weight")} == weight


def test_the_model_is_asked_for(rlhf, put, tiny_llama):
    pairs = put("pairs.jsonl", PAIRS)
    refused = rlhf("init", pairs)
    assert (refused.code, refused.error.partition(",")[0]) == (2, "--model is missing")
    assert rlhf("init", pairs, "--out", "x.yaml", typed=f"y\n{tiny_llama}\n").code == 0
    assert settings_of()["model"]["name_or_path"] == str(tiny_llama)


def test_a_refused_proposal_names_the_flag(rlhf, put, unseen):
    refused = rlhf("init", put("pairs.jsonl", PAIRS), "--model", unseen, typed="n\n")
    assert (refused.code, refused.error) == (2, "the proposal was refused; say how with --columns")


def test_columns_that_say_nothing_are_named_by_the_user(rlhf, put, unseen):
    odd = put("odd.jsonl", [{"alpha": f"Is train {n} late?", "beta": "It is."} for n in range(20)])
    words = ("init", odd, "--model", unseen, "--out", "x.yaml")
    refused = rlhf(*words)
    assert refused.error.startswith(
        "--columns is missing, and there is no terminal to ask in: odd.jsonl: no format has"
    )
    assert rlhf(*words, "--columns", "prompt=alpha,completion=beta").code == 0
    source = settings_of()["data"]["demonstrations"]
    assert (source["columns"], source["chat"]) == ({"prompt": "alpha", "completion": "beta"}, True)
    assert rlhf(*words, "--force", typed="prompt=alpha,completion=beta\n\n").code == 0
    for wrong, message in (
        ("prompt=gamma", "--columns: odd.jsonl has no column 'gamma' (found: alpha, beta)"),
        ("prompt", "--columns: 'prompt': expected OURS=THEIRS"),
        ("colour=alpha", "no known format has these columns"),
    ):
        refused = rlhf(*words, "--force", "--columns", wrong)
        assert refused.code == 2
        assert message in refused.error


def test_a_file_that_is_there_is_kept(rlhf, put, unseen):
    pairs = put("pairs.jsonl", PAIRS)
    Path("pairs.yaml").write_text("mine: 1\n")
    refused = rlhf("init", pairs, "--model", unseen)
    assert refused.error == "pairs.yaml is there already; take another with --out, or replace it with --force"
    assert Path("pairs.yaml").read_text() == "mine: 1\n"
    refused = rlhf("init", pairs, "--model", unseen, "--to", "dpoo", "--force")
    assert refused.code == 2
    assert Path("pairs.yaml").read_text() == "mine: 1\n"
    assert rlhf("init", pairs, "--model", unseen, "--force").code == 0
    assert settings_of("pairs.yaml")["name"] == "pairs"


def test_what_is_no_file_is_not_replaced(rlhf, put, unseen):
    pairs = put("pairs.jsonl", PAIRS)
    os.mkfifo("pipe")
    Path("link").symlink_to("nowhere")
    words = ("init", pairs, "--model", unseen, "--out")
    assert rlhf(*words, "pipe", "--force").error == "--out: pipe is no file"
    assert rlhf(*words, "link").error.startswith("link is there already")
    assert rlhf(*words, "x" * 300).error.endswith(": file name too long")
    assert Path("pipe").is_fifo()
    assert Path("link").is_symlink()
    assert sorted(path.name for path in Path().iterdir()) == ["link", "pairs.jsonl", "pipe"]
    assert rlhf(*words, "a b.yaml").out.endswith("  rlhf check 'a b.yaml'\n  rlhf run 'a b.yaml'\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pairs.jsonl", "--model", "./nowhere"], "--model: ./nowhere: no such folder"),
        (["pears.jsonl"], "pears.jsonl: no such file or folder (did you mean 'pairs.jsonl'?)"),
        (["pairs.jsonl", "--out", "a/b.yaml"], "--out: there is no folder a"),
        (["pairs.jsonl", "--out", "."], "--out: . is a folder"),
        (["votes:mine"], "votes:mine: votes belong to later rounds"),
    ],
)
def test_mistakes_are_one_line(rlhf, put, words, message):
    put("pairs.jsonl", PAIRS)
    refused = rlhf("init", *words)
    assert refused.code == 2
    assert refused.error.startswith(message)
    assert [path.name for path in Path().iterdir()] == ["pairs.jsonl"]


def test_without_a_network_the_yaml_has_what_the_name_tells(rlhf, put, unseen):
    done = rlhf("init", put("pairs.jsonl", PAIRS), "--model", f"{unseen}-Instruct", "--out", "x.yaml")
    assert done.code == 0, done.err
    assert (
        "nobody/Quite-7B-Instruct: the hub cannot be reached; the YAML is written with what its name tells" in done.out
    )
    tree = settings_of()
    assert list(tree["stages"]) == ["dpo"]  # an instruct model has learned to reply
    assert tree["stages"]["dpo"]["learning_rate"] == 5e-6
    assert "7 billion parameters, as its name says" in Path("x.yaml").read_text()


def test_classes_make_a_classifier(rlhf, put, tiny_bert, tiny_llama):
    rows = [{"query": f"where is card {n}", "intent": ["lost", "late"][n % 2]} for n in range(40)]
    name = put("intents.jsonl", rows)
    assert rlhf("init", name, "--model", tiny_bert, "--out", "x.yaml").code == 0
    tree = settings_of()
    assert (tree["model"]["adapter"], list(tree["stages"])) == (None, ["sft"])
    assert tree["rewards"]["right"]["function"] == "rlhf.rewards.right_label:right_label"
    assert rlhf("init", name, "--model", tiny_llama, "--out", "y.yaml").code == 0
    assert settings_of("y.yaml")["model"]["policy"] == "label"


def test_ninety_nine_in_a_hundred_rows_are_within_max_length(rlhf, put, tiny_llama):
    from rlhf.config.project import ModelConfig
    from rlhf.data.tokenize import Codec
    from rlhf.models.tokenizer import load_tokenizer

    rows = [{"instruction": "Hello Ada " * (1 + n % 20), "input": "", "output": "Thank you."} for n in range(200)]
    assert rlhf("init", put("rows.jsonl", rows), "--model", tiny_llama, "--out", "x.yaml").code == 0
    limit = settings_of()["stages"]["sft"]["max_length"]
    codec = Codec(load_tokenizer(ModelConfig(str(tiny_llama))))
    sides = [[{"role": role, "content": row[key]} for role, key in (("user", "instruction"), ("assistant", "output"))]
             for row in rows]  # fmt: skip
    lengths = sorted(len(codec.sequence(side[:1], side[1:])[0]) for side in sides)
    assert limit >= lengths[197]
    assert limit <= lengths[-1] + 64


def test_the_rows_of_a_step_stay_what_they_are():
    for batch in (Batch(32, 32), Batch(32, 4), Batch(32, 1, checkpointing=True)):
        fields = {line.key: line.value for line in batch.lines}
        assert fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] == 32
        assert fields.get("gradient_checkpointing", False) == batch.checkpointing
