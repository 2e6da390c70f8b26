"""A text written token by token, and what its steps are paid."""

import numpy as np
import pytest

from rlhf.envs import Rows, TextEnv, shaping
from rlhf.errors import UserError

PROMPTS = [{"prompt": "Hello Ada,"}, {"prompt": "Please send"}, {"prompt": "The"}]


def length(prompts, completions, **columns):
    return [2.0 + len(completion) for completion in completions]


def episode(env, row, actions):
    """The steps of an episode, without their observations, which are counted."""
    seen = [env.reset(options={"row": row})[0]]
    steps = []
    for action in actions:
        observation, *rest = env.step(action)
        seen.append(observation)
        steps.append(rest)
    return seen, steps


def test_the_completion_is_scored_at_the_end_token(tiny_tokenizer):
    env = TextEnv(Rows(PROMPTS), tiny_tokenizer, length, max_new_tokens=5)
    hi = tiny_tokenizer(" lamp")["input_ids"]
    _, steps = episode(env, 0, [*hi, tiny_tokenizer.eos_token_id])
    assert [step[0] for step in steps] == [0.0] * len(hi) + [2.0 + len(" lamp")]
    assert [step[1:3] for step in steps] == [[False, False]] * len(hi) + [[True, False]]
    assert steps[-1][3]["completion"] == " lamp"


def test_the_limit_truncates_and_ends(tiny_tokenizer):
    env = TextEnv(Rows(PROMPTS), tiny_tokenizer, length, max_new_tokens=3)
    token = tiny_tokenizer("a")["input_ids"][0]
    _, steps = episode(env, 0, [token] * 3)
    assert steps[-1][:3] == [5.0, True, True]
    _, steps = episode(env, 0, [token, token, tiny_tokenizer.eos_token_id])
    assert steps[-1][:3] == [4.0, True, False]


def test_a_completion_stands_in_the_same_columns_whatever_the_prompt(tiny_tokenizer):
    env = TextEnv(Rows(PROMPTS), tiny_tokenizer, length, max_new_tokens=3)
    pad, eos = tiny_tokenizer.pad_token_id, tiny_tokenizer.eos_token_id
    for row, prompt in enumerate(PROMPTS):
        ids = tiny_tokenizer(prompt["prompt"])["input_ids"]
        seen, _ = episode(env, row, [9, eos])
        assert [list(observation[-3:]) for observation in seen] == [[pad] * 3, [9, pad, pad], [9, eos, pad]]
        front = seen[0][:-3]
        assert list(front[-len(ids) :]) == ids
        assert (front[: -len(ids)] == pad).all()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("ends", [True, False])
def test_shaping_changes_every_return_by_the_same_number(tiny_tokenizer, gamma, ends):
    """The discounted return less that of the unshaped episode is -Phi(s_0), here -2, the reward of the empty text."""
    last = tiny_tokenizer.eos_token_id if ends else tiny_tokenizer("d")["input_ids"][0]
    actions = [*(tiny_tokenizer(letter)["input_ids"][0] for letter in "abc"), last]
    returns = []
    for shaped in (False, True):
        env = TextEnv(Rows(PROMPTS), tiny_tokenizer, length, 4, shaped=shaped, gamma=gamma)
        _, steps = episode(env, 2, actions)
        returns.append(sum(gamma**number * step[0] for number, step in enumerate(steps)))
    assert returns[1] - returns[0] == pytest.approx(-2.0)


def test_without_discount_a_step_is_paid_what_it_adds(tiny_tokenizer):
    env = TextEnv(Rows(PROMPTS), tiny_tokenizer, length, 4, shaped=True)
    _, steps = episode(
        env, 0, [*(tiny_tokenizer(letter)["input_ids"][0] for letter in "ab"), env.tokenizer.eos_token_id]
    )
    assert [step[0] for step in steps] == [1.0, 1.0, 0.0]


def test_shaping_by_hand():
    assert shaping(2.0, 3.0, 0.5) == -0.5
    assert shaping(2.0, 0.0) == -2.0


def test_messages_are_completed_by_a_message(tiny_tokenizer):
    seen = []

    def note(prompts, completions, **columns):
        seen.extend(completions)
        return [0.0]

    prompt = [{"role": "user", "content": "Hello"}]
    env = TextEnv(Rows([{"prompt": prompt}]), tiny_tokenizer, note, max_new_tokens=2)
    episode(env, 0, [tiny_tokenizer("a")["input_ids"][0], tiny_tokenizer.eos_token_id])
    assert seen == [[{"role": "assistant", "content": "a"}]]


def test_features_are_those_of_the_text_so_far(tiny_tokenizer):
    env = TextEnv(Rows(PROMPTS, lambda text: [len(text), 1]), tiny_tokenizer, length, max_new_tokens=2)
    seen, _ = episode(env, 2, [tiny_tokenizer("a")["input_ids"][0], tiny_tokenizer.eos_token_id])
    assert np.array(seen).tolist() == [[3, 1], [4, 1], [4, 1]]


def test_features_of_rows_are_none_of_texts(tiny_tokenizer):
    with pytest.raises(UserError, match="features"):
        TextEnv(Rows(PROMPTS, [[0.0]] * len(PROMPTS)), tiny_tokenizer, length)


def test_a_completion_has_room_for_a_token(tiny_tokenizer):
    with pytest.raises(UserError, match="max_new_tokens"):
        TextEnv(Rows(PROMPTS), tiny_tokenizer, length, max_new_tokens=0)
