import json

from rlhf.pipeline import identity


def test_the_keys_that_differ_are_named():
    before = {"trainer": {"beta": 0.1, "seed": 1}, "parents": {"sft": "a"}}
    now = json.loads(json.dumps(before))
    now["trainer"]["beta"] = 0.2
    now["base"] = {"files": "x"}
    assert identity.changes(before, now) == ["trainer.beta", "base"]
