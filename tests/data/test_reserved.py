"""A prompt is on one side only, whatever is voted on, and the final comparison is the same with votes and without."""

import dataclasses

import pytest

from rlhf.config.project import EvaluateConfig
from rlhf.data.ledger import ALL_TRAINED, COMPARED, Ledger
from rlhf.data.prepare import evaluation_prompts, fingerprints, iter_records
from rlhf.data.sets import without_always_trained
from rlhf.data.splits import canonical, opening


def pairs(count, tag):
    return [{"prompt": f"p{n}", "chosen": f"{tag} yes {n}", "rejected": f"{tag} no {n}"} for n in range(count)]


@pytest.fixture
def both(write, project):
    """Preferences of 300 prompts, and votes on 150 of them and on 20 others; six prompts are compared on."""
    votes = [*pairs(150, "vote"), *({**row, "prompt": "new " + row["prompt"]} for row in pairs(20, "vote"))]
    sources = [{"source": str(write("own.jsonl", pairs(300, "own")))},
               {"source": str(write("votes.jsonl", votes)), "train_all": True}]  # fmt: skip
    made = project(preferences=sources, demonstrations=write("d.jsonl", [
        {"prompt": f"p{n}", "completion": "d"} for n in range(300)
    ]), holdout=0.3)  # fmt: skip
    return dataclasses.replace(made, evaluate=EvaluateConfig(prompts=30))


def sides(project, role, ledger=None):
    found = {"train": set(), "eval": set()}
    for record, side in iter_records(project, role, ledger):
        found[side].add(canonical(opening(record)))
    return found


def test_votes_train_but_for_those_on_the_final_comparison(both):
    own = without_always_trained(both)
    compared = {canonical(prompt.prompt) for prompt in evaluation_prompts(own, 30)}
    ledger = Ledger("preferences")
    records = list(iter_records(both, "preferences", ledger))
    voted = [record for record, _ in records if record.chosen.startswith("vote")]
    assert {side for record, side in records if record.chosen.startswith("vote")} == {"train"}
    dropped = 170 - len(voted)
    assert dropped == ledger.dropped[COMPARED] > 0
    held_out_before = {
        canonical(opening(record)) for record, side in iter_records(own, "preferences") if side == "eval"
    }
    of_votes = {canonical(f"p{n}") for n in range(150)}
    assert ledger.dropped[ALL_TRAINED] == len((held_out_before - compared) & of_votes) > 0
    assert dropped == len(compared & of_votes)
    ledger.check()


@pytest.mark.parametrize("role", ["preferences", "demonstrations"])
def test_every_prompt_is_on_one_side_in_all_sets(both, role):
    here, there = sides(both, role), sides(both, "preferences")
    assert not here["train"] & here["eval"]
    assert not here["eval"] & there["train"]
    assert not here["train"] & there["eval"]


def test_the_final_comparison_stays(both):
    without = evaluation_prompts(without_always_trained(both), 30)
    assert [prompt.prompt for prompt in evaluation_prompts(both, 30)] == [prompt.prompt for prompt in without]
    assert fingerprints(both, "prompts") == fingerprints(without_always_trained(both), "prompts")


def test_with_prompts_of_its_own_the_comparison_stays_too(both, write):
    from rlhf.config.sets import DatasetConfig, SourceConfig

    asked = [{"prompt": f"p{n}"} for n in range(100, 180)]
    given = DatasetConfig((SourceConfig(str(write("asked.jsonl", asked))),))
    made = dataclasses.replace(both, data=dataclasses.replace(both.data, prompts=given))
    compared = [prompt.prompt for prompt in evaluation_prompts(made, 30)]
    assert compared == [prompt.prompt for prompt in evaluation_prompts(without_always_trained(made), 30)]
    trained = sides(made, "preferences")["train"]
    assert not trained & set(map(canonical, compared))
    assert not trained & sides(made, "prompts")["eval"]
    assert {canonical(f"p{n}") for n in range(100, 150)} & trained  # voted on, and not compared on


def test_later_turns_of_a_compared_conversation_do_not_train(write, project):
    def talk(n, *turns):
        return [{"role": "user", "content": f"open {n}"}, *turns]

    own = [{"prompt": talk(n), "chosen": [{"role": "assistant", "content": "y"}],
            "rejected": [{"role": "assistant", "content": "n"}]} for n in range(100)]  # fmt: skip
    more = ({"role": "assistant", "content": "and?"}, {"role": "user", "content": "more"})
    votes = [{**row, "prompt": talk(n, *more)} for n, row in enumerate(own)]
    sources = [{"source": str(write("own.jsonl", own))}, {"source": str(write("v.jsonl", votes)), "train_all": True}]
    made = dataclasses.replace(project(preferences=sources, holdout=0.3), evaluate=EvaluateConfig(prompts=10))
    found = sides(made, "preferences")
    assert not found["train"] & found["eval"]
    assert len(found["eval"]) == len(evaluation_prompts(made, 10)) == 10


def test_votes_identify_every_set_and_their_absence_changes_nothing(both, write):
    own = without_always_trained(both)
    assert "all_trained" not in fingerprints(own, "demonstrations")
    before = fingerprints(both, "demonstrations")
    assert before["all_trained"]["preferences"][0]["file"] == "votes.jsonl"
    write("votes.jsonl", pairs(3, "later"))
    assert fingerprints(both, "demonstrations") != before
    fewer = dataclasses.replace(both, evaluate=EvaluateConfig(prompts=20))
    assert fingerprints(fewer, "preferences")["compared"]["limit"] == 20
