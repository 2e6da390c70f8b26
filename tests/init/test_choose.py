"""Which file serves what, and what is trained on it."""

from dataclasses import replace

import pytest

from rlhf.data.records import Demonstration
from rlhf.errors import UserError
from rlhf.init.choose import File, choose
from rlhf.init.look import Facts
from rlhf.init.model import ModelFacts
from rlhf.init.reading import Reading, kind_of

FORMATS = {"pairs": "preference", "replies": "messages", "judged": "kto", "classes": "labelled", "marked": "squad",
           "prompts": "prompt_only", "maths": "gsm8k", "images": "images"}  # fmt: skip
BASE, TAUGHT = ModelFacts("base"), ModelFacts("taught", template=True)
BERT = ModelFacts("bert", policy="label", encoder=True)


def file(name):
    layout = FORMATS[name.partition("-")[0]]
    checkable = 100 if layout == "gsm8k" else 0
    return File(f"{name}.jsonl", Reading(kind_of(layout), layout), Facts(rows=100, used=100, checkable=checkable))


def chosen(*names, model=BASE, **asked):
    return choose([file(name) for name in names], model, **asked)


def sets_of(choice):
    return {name: [file.path.removesuffix(".jsonl") for file in files] for name, files in choice.sets.items()}


@pytest.mark.parametrize(
    ("names", "model", "stages", "sets"),
    [
        (["replies"], BASE, "sft", {"demonstrations": ["replies"]}),
        (["pairs"], TAUGHT, "dpo", {"preferences": ["pairs"]}),
        (["pairs"], BASE, "sft dpo", {"preferences": ["pairs"], "demonstrations": ["pairs"]}),
        (["pairs", "replies"], TAUGHT, "sft dpo", {"preferences": ["pairs"], "demonstrations": ["replies"]}),
        (["judged"], TAUGHT, "kto", {"feedback": ["judged"]}),
        (["judged"], BASE, "sft kto", {"feedback": ["judged"], "demonstrations": ["judged"]}),
        (["replies", "prompts"], BASE, "sft", {"demonstrations": ["replies"], "prompts": ["prompts"]}),
        (["replies", "replies-more"], BASE, "sft", {"demonstrations": ["replies", "replies-more"]}),
        (["maths-train", "maths-test"], BASE, "sft", {"demonstrations": ["maths-train"], "prompts": ["maths-test"]}),
        (["maths-test"], BASE, "sft", {"demonstrations": ["maths-test"]}),
        (["classes"], BERT, "sft", {"demonstrations": ["classes"]}),
        (["marked"], BERT, "sft", {"demonstrations": ["marked"]}),
    ],
)
def test_what_the_files_suggest(names, model, stages, sets):
    choice = chosen(*names, model=model)
    assert (" ".join(choice.stages), sets_of(choice)) == (stages, sets)


@pytest.mark.parametrize(
    ("names", "to", "stages", "sets"),
    [
        (["pairs"], ["ppo"], "reward ppo", {"preferences": ["pairs"]}),
        (["pairs", "replies"], ["dpo"], "dpo", {"preferences": ["pairs"]}),
        (["pairs"], ["kto"], "kto", {"preferences": ["pairs"]}),
        (["maths"], ["ppo", "sft"], "sft ppo", {"demonstrations": ["maths"]}),
        (["pairs", "prompts"], ["ppo", "sft"], "sft reward ppo",
         {"preferences": ["pairs"], "demonstrations": ["pairs"], "rollouts": ["prompts"]}),
    ],
)  # fmt: skip
def test_what_the_user_asks_for(names, to, stages, sets):
    choice = chosen(*names, to=to)
    assert (" ".join(choice.stages), sets_of(choice)) == (stages, sets)


def test_sets_stand_in_one_order():
    choice = chosen("prompts", "pairs", "replies", to=["sft", "dpo", "ppo"])
    assert list(choice.sets) == ["demonstrations", "preferences", "rollouts"]


def test_who_judges():
    assert chosen("pairs").judge is None
    assert chosen("replies").judge is None
    assert chosen("maths").judge.function == "rlhf.rewards.exact_match:exact_match"
    assert chosen("maths", "pairs").judge is None  # the pairs' prompts have no answer to compare with
    assert chosen("classes", model=BERT).judge.function == "rlhf.rewards.right_label:right_label"
    assert chosen("prompts", to=["ppo"], reward="judge.py:score").judge.function == "judge.py:score"


@pytest.mark.parametrize(
    ("names", "model", "asked", "message"),
    [
        (["prompts"], BASE, {}, "nothing learns from them alone"),
        (["replies"], BASE, {"to": ["ppo"]}, "--to: ppo needs something to maximise"),
        (["replies"], BASE, {"to": ["dpo"]}, "--to: dpo learns from pairs, and no file has any"),
        (["pairs"], BASE, {"to": []}, "--to: names no stage; known: sft, reward, dpo, kto, ppo"),
        (["pairs"], BASE, {"to": ["dpoo"]}, "--to: there is no stage 'dpoo' here; did you mean 'dpo'"),
        (["classes"], BERT, {"to": ["dpo"]}, "--to: dpo compares replies"),
        (["classes", "pairs"], BASE, {}, "train different models: run rlhf init for each"),
        (["pairs"], BERT, {}, "bert writes no replies"),
        (["marked"], BASE, {}, "base writes text; questions with the place of their answer train an encoder"),
        (["images"], BASE, {}, "base reads text, and these files are images"),
    ],
)
def test_what_does_not_go_together(names, model, asked, message):
    with pytest.raises(UserError, match=message):
        chosen(*names, model=model, **asked)


def test_a_causal_model_gets_a_head_for_classes():
    assert chosen("classes").policy == "label"


def test_an_encoder_decoder_learns_from_plain_text():
    t5 = ModelFacts("t5", policy="seq2seq")
    record = Demonstration([{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "So."}], "here:1")
    talk = replace(file("replies"), facts=Facts(rows=1, used=1, records=[record]))
    with pytest.raises(UserError, match=r"replies\.jsonl has conversations"):
        choose([talk], t5)
    assert choose([talk], BASE).stages == ("sft",)
    assert chosen("pairs", model=t5).policy == "seq2seq"
