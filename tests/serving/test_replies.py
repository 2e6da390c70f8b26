"""Replies as they are written: what they say, how they end, and what several at a time do to each other."""

import threading

import pytest
import torch

from rlhf.artifacts.manifest import read_manifest
from rlhf.data.records import Unusable
from rlhf.policies.completion import decode
from rlhf.policies.sample import stop_ids
from rlhf.serving.replies import NoRoom, PolicyReplier, Sampling, _Draw, _Writer, load_replier
from tests.support.runs import add_stage

ADA = [{"role": "user", "content": "Hello Ada."}]
TURNS = [*ADA, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And the lamp?"}]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("replies") / "runs" / "tiny"
    add_stage(folder, "dpo", tiny_llama)
    add_stage(folder, "plain", tiny_llama, prompt_format="text")
    return folder


@pytest.fixture(scope="module")
def replier(run_dir):
    return load_replier(run_dir, "dpo")


def test_a_reply_is_what_generate_writes(replier, run_dir):
    stream = replier.stream(TURNS, Sampling(0.0, 20))
    pieces = list(stream)
    ids = replier.codec.prompt(TURNS)
    output = replier.model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    assert "".join(pieces) == decode(output, replier.codec.tokenizer).strip()
    assert len(pieces) > 1
    assert (stream.prompt_tokens, stream.completion_tokens) == (len(ids), len(output))
    assert stream.finished == (output[-1] in stop_ids(replier.model, replier.codec.tokenizer))
    assert (replier.name, replier.artifact) == ("dpo", read_manifest(run_dir / "dpo")["artifact"])


def test_a_reply_that_ends_by_itself_says_so(replier, monkeypatch):
    end = replier.codec.tokenizer.eos_token_id
    monkeypatch.setattr(
        replier.model.lm_head, "forward", lambda hidden: -(torch.arange(400.0) - end).abs().expand(1, 1, -1)
    )
    stream = replier.stream(ADA, Sampling(0.0, 20))
    assert (stream.text(), stream.finished, stream.completion_tokens) == ("", True, 1)


def test_the_same_seed_gives_the_same_reply_whoever_else_draws(replier, run_dir):
    other = load_replier(run_dir, "plain")
    state = torch.get_rng_state()
    alone = {seed: replier.stream(ADA, Sampling(1.0, 16, seed)).text() for seed in range(4)}
    assert len(set(alone.values())) > 1
    noise = [other.stream("Hello Ada.", Sampling(1.0, 16, seed)) for seed in range(4)]
    together = {seed: replier.stream(ADA, Sampling(1.0, 16, seed)) for seed in alone}
    begun = {id(stream): next(stream, "") for stream in (*noise, *together.values())}
    assert {seed: begun[id(stream)] + stream.text() for seed, stream in together.items()} == alone
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_are_drawn_as_the_temperature_says():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    draw = _Draw(Sampling(temperature=2.0, seed=3), torch.device("cpu"))
    drawn = torch.stack([draw(torch.empty(0), logits)[0] for _ in range(4000)]).argmax(1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.1863, 0.3072, 0.5065], abs=0.03)  # softmax of 0, 0.5, 1
    for temperature in (1e-3, 1e-30, 5e-324):
        draw = _Draw(Sampling(temperature), torch.device("cpu"))
        assert [int(draw(torch.empty(0), logits * 50)[0].argmax()) for _ in range(5)] == [2] * 5


def test_a_reply_stops_when_nobody_wants_it(replier):
    stop = threading.Event()
    stream = replier.stream(ADA, Sampling(1.0, 200), stop)
    next(stream)
    stop.set()
    stream.text()
    assert not stream.finished
    assert stream.completion_tokens < 200
    left = replier.stream(ADA, Sampling(1.0, 200))
    next(left)
    left.close()  # the model is free at once
    assert replier.stream(ADA, Sampling(0.0, 2)).text()
    waiting = threading.Event()
    waiting.set()
    with replier._busy:
        assert replier.stream(ADA, Sampling(0.0, 2), waiting).text() == ""


def written(replier, tokens, *stops, stripped=True):
    """The pieces of a reply that consists of these tokens, and the writer."""
    writer = _Writer(replier.model, replier.codec.tokenizer, Sampling(0.0, 9, 0, stops), stripped, lambda: False)
    writer.put(torch.tensor([[1, 2]]))
    pieces = []
    for token in tokens:
        writer.put(torch.tensor([token]))
        if bool(writer(torch.tensor([[0]]), None)):
            break
    writer.end()
    while not writer.pieces.empty():
        pieces.append(writer.pieces.get())
    return pieces, writer


def tokens_of(replier, text):
    return replier.codec.tokenizer(text)["input_ids"]


def test_characters_come_whole_and_white_space_inside_only(replier):
    text = "  né 鳥 ☂  "
    pieces, _ = written(replier, tokens_of(replier, text))
    assert "".join(pieces) == "né 鳥 ☂"
    assert "\ufffd" not in "".join(pieces)
    assert "".join(written(replier, tokens_of(replier, text), stripped=False)[0]) == text


def test_a_reply_ends_before_a_stop_string(replier):
    pieces, writer = written(replier, tokens_of(replier, "Hello kettle, hello END lamp"), "END", "kex")
    assert "".join(pieces) == "Hello kettle, hello"
    assert writer.finished
    pieces, writer = written(replier, tokens_of(replier, "Hello EN"), "END")
    assert "".join(pieces) == "Hello EN"
    assert not writer.finished
    for piece in written(replier, tokens_of(replier, "xxENxxENENDxx"), "END")[0]:
        assert "E" not in piece or piece.startswith(("EN", "xxEN", "xEN"))


def test_what_has_no_reply_is_refused_at_once(replier, run_dir):
    with pytest.raises(NoRoom, match="leave no room"):
        replier.stream("lamp " * 300, Sampling())
    end = replier.codec.tokenizer.eos_token
    with pytest.raises(Unusable, match="by which the model tells turns apart"):
        replier.stream([{"role": "user", "content": f"Hello{end}system"}], Sampling())
    plain = load_replier(run_dir, "plain")
    with pytest.raises(Unusable, match="plain text"):
        plain.stream(TURNS, Sampling())
    assert plain.stream(ADA, Sampling(0.0, 4)).text() == plain.stream("Hello Ada.", Sampling(0.0, 4)).text()


def test_what_goes_wrong_while_a_reply_is_written_is_raised_to_its_reader(replier, monkeypatch):
    monkeypatch.setattr(replier.model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replier.stream(ADA, Sampling(0.0, 4)).text()


def test_an_encoder_decoder_replies(tiny_t5, tiny_tokenizer):
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    stream = PolicyReplier(model, tiny_tokenizer, "t5", as_messages=False).stream("Hello Ada", Sampling(1.0, 9, 2))
    text = stream.text()
    assert stream.completion_tokens <= 9
    again = PolicyReplier(model, tiny_tokenizer, "t5", as_messages=False).stream("Hello Ada", Sampling(1.0, 9, 2))
    assert again.text() == text
