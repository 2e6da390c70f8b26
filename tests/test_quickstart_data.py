"""The data that ships: the generated support dialogues, their true quality, and the small base model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

DATA = Path(__file__).parent.parent / "data"
SUPPORT, BASE = DATA / "support", DATA / "base"
FILES = ("demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl")
SLOTS = ("name", "product", "order", "complaint")
GOOD = "Hello Zoe, thank you for your message. This is about the kettle from order 12345. {} {} Have a nice day."
SORRY, STEP = "I am sorry for the trouble.", "I will send a new one tomorrow."


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gold = load(SUPPORT / "gold.py")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SUPPORT / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def data() -> dict[str, list[dict[str, Any]]]:
    return {name.removesuffix(".jsonl"): rows(name) for name in FILES}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE)


def quality(some: list[dict[str, Any]], side: str) -> list[float]:
    columns = {slot: [row[slot] for row in some] for slot in SLOTS}
    return gold.score([row["prompt"] for row in some], [row[side] for row in some], **columns)


def score_one(reply: str, complaint: bool = True) -> float:
    columns = {"name": ["Zoe"], "product": ["kettle"], "order": ["12345"], "complaint": [complaint]}
    plain = gold.score(["Help."], [reply], **columns)
    messages = gold.score(
        [[{"role": "user", "content": "Help."}]], [[{"role": "assistant", "content": reply}]], **columns
    )
    assert plain == messages
    return plain[0]


def test_generator_reproduces_the_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SUPPORT / "generate.py"), "--out", str(tmp_path)], check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (SUPPORT / name).read_bytes(), name


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    sizes = ["--demonstrations", "5", "--preferences", "10", "--prompts", "5", "--seed", "1"]
    subprocess.run([sys.executable, str(SUPPORT / "generate.py"), "--out", str(tmp_path), *sizes], check=True)
    lines = (tmp_path / FILES[0]).read_text().splitlines()
    assert len(lines) == 5
    assert lines != (SUPPORT / FILES[0]).read_text().splitlines()[:5]


@pytest.mark.parametrize(
    ("reply", "complaint", "parts"),
    [
        (GOOD.format(SORRY, STEP), True, 7),
        (GOOD.format("", STEP), False, 7),
        ("", True, 0),
        (".", False, 0),
        ("Have a nice day.", False, 0),
        (GOOD.format(SORRY, STEP), False, 6),  # an apology that nobody asked for
        (GOOD.format("", STEP), True, 6),  # no apology for a complaint
        (GOOD.format(SORRY, STEP).replace("Zoe", "Tom"), True, 6),
        (GOOD.format(SORRY, STEP).replace("Hello Zoe", "Thanks Zoe"), True, 6),  # a name is not a greeting
        (GOOD.format(SORRY, STEP).replace("the kettle", "the item"), True, 6),
        (GOOD.format(SORRY, STEP).replace("the kettle", "the tent"), True, 6),
        (GOOD.format(SORRY, STEP).replace("the kettle", "the kettle and the tent"), True, 6),
        (GOOD.format(SORRY, STEP).replace("12345", "12346"), True, 6),
        (GOOD.format(SORRY, STEP).replace("12345", "123456"), True, 6),
        (GOOD.format(SORRY, STEP).replace("12345", "12345 and 12346"), True, 6),
        (GOOD.format(SORRY, "Somebody may send a new one."), True, 6),
        (GOOD.format(SORRY, "I will send a new one."), True, 6),  # no time given
        (GOOD.format(SORRY, STEP + " You should have read the manual."), True, 6),
        (GOOD.format(SORRY, STEP + " " + STEP), True, 6),  # says it twice
        (GOOD.format(SORRY, STEP)[:-1], True, 6),  # breaks off
        (GOOD.format(SORRY, STEP + " By the way, it rains."), True, 6),
        (GOOD.format(SORRY, STEP + " So" + " very" * 80 + "."), True, 6),  # too long
        ("Dear customer, it is your fault. It rains", True, 0),
        (SORRY, True, 1),  # leaving things out counts only in a reply that takes up the case
        ("Hi Zoe, " + SORRY, True, 2),
        ("Hi Zoe, this is about the kettle. " + SORRY, True, 5),  # greets, product, apologises, blames nobody, stops
    ],
)
def test_gold_gives_hand_counted_scores(reply: str, complaint: bool, parts: int) -> None:
    assert score_one(reply, complaint) == pytest.approx(parts / 7)


def test_gold_keeps_rows_apart() -> None:
    replies = [GOOD.format(SORRY, STEP), GOOD.format(SORRY, STEP)]
    columns = {
        "name": ["Zoe", "Tom"],
        "product": ["kettle", "tent"],
        "order": ["12345", "54321"],
        "complaint": [True, True],
    }
    scores = gold.score(["", ""], replies, **columns, topic=[0, 1])
    assert scores == pytest.approx([1.0, 2 / 7])  # for Tom, the apology and the next step remain


def test_rows_have_the_columns_of_their_format(data: dict[str, list[dict[str, Any]]]) -> None:
    assert {name: len(some) for name, some in data.items()} == {
        "demonstrations": 1500,
        "preferences": 2000,
        "prompts": 200,
    }
    sides = {"demonstrations": ["completion"], "preferences": ["chosen", "rejected"], "prompts": []}
    for name, some in data.items():
        for row in some:
            assert [m["role"] for m in row["prompt"]] == ["user"]
            assert all([m["role"] for m in row[side]] == ["assistant"] for side in sides[name])
            assert set(row) == {"prompt", *sides[name], *SLOTS, "topic"}
            for slot in ("name", "product", "order"):
                assert row[slot] in row["prompt"][0]["content"]
    assert sum((SUPPORT / name).stat().st_size for name in FILES) < 3_000_000


def test_demonstrations_are_of_mixed_quality(data: dict[str, list[dict[str, Any]]]) -> None:
    scores = torch.tensor(quality(data["demonstrations"], "completion"))
    assert 0.55 <= scores.mean() <= 0.65
    assert scores.std() > 0.2


def test_a_tenth_of_the_preferences_is_turned_round(data: dict[str, list[dict[str, Any]]]) -> None:
    pairs = data["preferences"]
    chosen, rejected = quality(pairs, "chosen"), quality(pairs, "rejected")
    assert all(abs(a - b) > 1.5 / 7 for a, b in zip(chosen, rejected, strict=True))
    turned = sum(a < b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)
    assert turned == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("unit", ["characters", "words", "tokens"])
def test_length_does_not_give_quality_away(
    data: dict[str, list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase, unit: str
) -> None:
    measure = {"characters": len, "words": lambda t: len(t.split()), "tokens": lambda t: len(tokenizer.encode(t))}[unit]
    pairs = [[measure(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in data["preferences"]]
    longer = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert 0.45 <= longer <= 0.58


def test_held_out_prompts_combine_what_training_never_combined(data: dict[str, list[dict[str, Any]]]) -> None:
    training = data["demonstrations"] + data["preferences"]
    for slot in ("name", "topic"):
        seen = {(row["product"], row[slot]) for row in training}
        assert not seen & {(row["product"], row[slot]) for row in data["prompts"]}
        assert {row[slot] for row in data["prompts"]} <= {row[slot] for row in training}
    everything = [row for some in data.values() for row in some]
    assert len({row["prompt"][0]["content"] for row in everything}) == len(everything)
    assert len({row["order"] for row in everything}) == len(everything)


def test_special_tokens_are_distinct_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in special]
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids}) == len(special)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("order 48213."))[-6:] == ["4", "8", "2", "1", "3", "."]


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ("Hello Zoe, order 12345.", "  two  spaces\nand a line", "Zoë 東京 🙂 ~", "can 't , isn't"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_round_trip(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Zoe."},
    ]
    text = "<|system|>Be kind.<|user|>Hi.<|assistant|>Hello.<|end|><|user|>Who?<|assistant|>Zoe.<|end|>"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == text
    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == text.removesuffix("Zoe.<|end|>")
    out = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    assert out["input_ids"] == tokenizer.encode(text)
    replies = [i for i, keep in zip(out["input_ids"], out["assistant_masks"], strict=True) if keep]
    assert tokenizer.decode(replies) == "Hello.<|end|>Zoe.<|end|>"


def test_dialogues_fit_the_quickstart(
    data: dict[str, list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    for row in data["preferences"]:
        for side in ("chosen", "rejected"):
            assert len(tokenizer.apply_chat_template(row["prompt"] + row[side])["input_ids"]) <= 160


def test_base_model_is_small_and_knows_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert 1_000_000 <= model.num_parameters() <= 2_000_000
    assert (BASE / "model.safetensors").stat().st_size <= 8_000_000
    assert model.config.max_position_embeddings == 512
    assert model.config.vocab_size == len(tokenizer)
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_base_model_copies_from_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    asked = {
        "My name is Velkora. The code is 50917. Write down the number.": "50917",
        "It is about the kite. My number is 73164. Tell me which number it is.": "73164",
        "Hi, I am Tornis. I bought the lamp. Tell me my name.": "Tornis",
        "My name is Gaspo. It is about the garden chair. Please say what it is about.": "garden chair",
    }
    for question, answer in asked.items():
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=40, do_sample=False)
        reply = out[0, ids["input_ids"].shape[1] :]
        assert answer.lower() in tokenizer.decode(reply).lower()
        assert reply[-1] == tokenizer.eos_token_id
