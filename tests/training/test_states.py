"""What goes into a checkpoint's files comes out of them, to the last bit and of the same types."""

import random

import numpy as np
import pytest
import torch

from rlhf.training.states import (
    load_state,
    optimizer_state,
    placed_optimizer_state,
    random_state,
    regrouped,
    save_state,
    set_random_state,
)


def test_states_come_back_as_they_were(tmp_path):
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}, 1: {}},
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "params": [0, 1], "fused": None, "on": True}],
        "is": "a key that means something here",
        "odd": float("nan"),
    }
    save_state(tmp_path, "optimizer", state)
    back = load_state(tmp_path, "optimizer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["optimizer.json", "optimizer.safetensors"]
    assert back["state"].keys() == {0, 1}
    assert torch.equal(back["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    assert back["state"][0]["step"].dtype == torch.float32
    assert back["param_groups"] == state["param_groups"]
    assert type(back["param_groups"][0]["betas"]) is tuple
    assert back["is"] == state["is"]
    assert back["odd"] != back["odd"]


def test_views_of_the_same_memory_are_saved(tmp_path):
    whole = torch.arange(6.0)
    save_state(tmp_path, "views", [whole[:3], whole[1:], whole.view(2, 3).T, whole, whole.view(2, 3)])
    first, second, turned, same, viewed = load_state(tmp_path, "views")
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == [1, 2, 3, 4, 5]
    assert turned.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert same.tolist() == [0, 1, 2, 3, 4, 5]
    assert viewed.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_would_need_a_pickle_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"\.a\.1 is a set"):
        save_state(tmp_path, "odd", {"a": [1, {2}]})


def test_random_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    np.random.randn()  # leaves a second normal number in the generator
    save_state(tmp_path, "rng", random_state())
    drawn = draw()
    assert draw() != drawn
    set_random_state(load_state(tmp_path, "rng"))
    assert draw() == drawn


def test_an_optimizer_goes_on_in_other_groups(tmp_path):
    """Each parameter keeps its own state and rate, whatever stands in its group; so does the schedule of each rate."""
    weights = {name: torch.nn.Parameter(torch.zeros(size)) for name, size in (("a", 2), ("b", 2), ("c", 3))}
    names = {id(weight): name for name, weight in weights.items()}

    def grouped(*groups):
        optimizer = torch.optim.AdamW([{"params": [weights[n] for n in of], "lr": rate} for of, rate in groups])
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    before, schedule = grouped(("ac", 0.1), ("b", 0.2))
    for number, weight in enumerate(weights.values()):
        weight.grad = torch.full_like(weight, 1.0 + number)
    before.step()
    schedule.step()
    save_state(tmp_path, "optimizer", optimizer_state(before, names))
    after, later = grouped(("b", 0.2), ("a", 0.1), ("c", 0.1))
    saved = load_state(tmp_path, "optimizer")
    state, continued = placed_optimizer_state(saved, after, names)
    after.load_state_dict(state)
    later.load_state_dict(regrouped(schedule.state_dict(), continued, len(saved["param_groups"])))
    assert continued == [1, 0, 0]
    for weight in weights.values():
        assert torch.equal(after.state[weight]["exp_avg"], before.state[weight]["exp_avg"])
    assert [group["lr"] for group in after.param_groups] == [0.1, 0.05, 0.05]
    after.step()
    later.step()
    assert later.get_last_lr() == pytest.approx([0.2 / 3, 0.1 / 3, 0.1 / 3])


def test_an_optimizer_goes_on_from_a_state_without_names():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    names = {id(weight): str(number) for number, weight in enumerate(weights)}
    before, after = (torch.optim.AdamW([{"params": weights[::-1]}, {"params": []}]) for _ in range(2))
    weights[1].grad = torch.ones(2)
    before.step()
    state, continued = placed_optimizer_state(before.state_dict(), after, names)
    after.load_state_dict(state)
    assert continued == [0, 1]
    assert torch.equal(after.state[weights[1]]["exp_avg"], before.state[weights[1]]["exp_avg"])
    assert weights[0] not in after.state
