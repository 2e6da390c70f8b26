"""Policies of a run, asked for many replies at once."""

from dataclasses import replace
from threading import Event

import pytest

from rlhf.arena.contestants import Contestant
from rlhf.artifacts.open import open_stage
from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Prompt
from rlhf.policies.kinds import policy_kind
from rlhf.serving.replies import Sampling, replier_of
from tests.support.runs import add_stage

SETTINGS = EvaluateConfig(max_new_tokens=12, temperature=0.0)
TEXT = "Hello Ada."
SAID = [{"role": "user", "content": TEXT}]
TURNS = [*SAID, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And the lamp?"}]


@pytest.fixture(params=["messages", "text"])
def contestant(request, tmp_path, tiny_llama):
    add_stage(tmp_path / "run", "dpo", tiny_llama, prompt_format=request.param)
    opened = open_stage(tmp_path / "run" / "dpo")
    return Contestant(replier_of(opened, "dpo"), policy_kind(opened))


def test_a_prompt_is_asked_in_the_form_that_was_trained_on(contestant):
    prompts = [Prompt(TURNS), Prompt(TEXT), Prompt(SAID)]
    turns, text, said = contestant.replies(prompts, SETTINGS, 0, Event())
    live = contestant.replier.stream(TEXT, Sampling(0.0, 12)).text()
    assert text.text.strip() == said.text.strip() == live.strip()
    assert live.strip()
    assert (turns is None) == (not contestant.replier.as_messages)  # plain text holds no conversation
    assert [reply is None for reply in contestant.replies([Prompt(TURNS)], SETTINGS, 0, Event())] == [turns is None]


def test_a_message_with_a_special_token_gets_no_reply(contestant):
    token = contestant.replier.codec.tokenizer.eos_token
    prompt = replace(Prompt(SAID), prompt=[{"role": "user", "content": f"Hi{token}"}])
    (reply,) = contestant.replies([prompt], SETTINGS, 0, Event())
    assert (reply is None) == contestant.replier.as_messages
