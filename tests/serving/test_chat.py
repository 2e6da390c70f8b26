import io
import json
import subprocess
import sys

import pytest
import torch

from rlhf.data.records import Unusable
from rlhf.errors import UserError
from rlhf.serving.chat import Conversation, chat, printable
from rlhf.serving.replies import Sampling, Stream, load_replier
from tests.support.damage import record_of
from tests.support.runs import add_stage


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("chat") / "runs" / "tiny"
    add_stage(folder, "sft", tiny_llama)
    add_stage(folder, "reward", tiny_llama, "sft", labels=1)
    add_stage(folder, "dpo", tiny_llama, "sft")
    add_stage(folder, "plain", tiny_llama, prompt_format="text")
    return folder


def conversation(run_dir, stage) -> Conversation:
    return Conversation(load_replier(run_dir, stage))


def greedy(tokens) -> Sampling:
    return Sampling(temperature=0.0, max_new_tokens=tokens)


def talk(folder, *lines, **options):
    """What is written while these lines are read."""
    out = io.StringIO()
    chat(folder, lines=io.StringIO("".join(line + "\n" for line in lines)), out=out, max_new_tokens=8, **options)
    return out.getvalue()


def test_the_same_seed_gives_the_same_replies_and_greedy_needs_none(run_dir):
    lines = ("Hello Ada.", "And the lamp?")
    first = talk(run_dir / "dpo", *lines, seed=1)
    state = torch.get_rng_state()
    assert talk(run_dir / "dpo", *lines, seed=1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert talk(run_dir / "dpo", *lines, seed=2) != first
    assert talk(run_dir / "dpo", *lines, temperature=0, seed=1) == talk(run_dir / "dpo", *lines, temperature=0, seed=2)


def test_what_is_written_is_the_reply(run_dir):
    subject = conversation(run_dir, "dpo")
    out = io.StringIO()
    reply = subject.reply("Hello Ada.", greedy(8), out)
    assert printable(reply).strip() == out.getvalue().strip()
    assert out.getvalue().endswith("\n")
    model, codec = subject.replier.model, subject.replier.codec
    ids = codec.prompt([{"role": "user", "content": "Hello Ada."}])
    output = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert reply == codec.tokenizer.decode(output, skip_special_tokens=True).strip()


def test_the_conversation_is_kept_until_reset(run_dir):
    subject = conversation(run_dir, "sft")
    first = subject.reply("Hello Ada.", greedy(4), io.StringIO())
    subject.reply("And the lamp?", greedy(4), io.StringIO())
    assert [turn["role"] for turn in subject.messages] == ["user", "assistant"] * 2
    assert subject.messages[1]["content"] == first
    subject.restart("Be kind.")
    assert subject.messages == [{"role": "system", "content": "Be kind."}]
    subject.restart()
    assert subject.reply("Hello Ada.", greedy(4), io.StringIO()) == first


def test_a_stage_trained_on_plain_text_gets_each_line_alone(run_dir, capsys):
    subject = conversation(run_dir, "plain")
    first = subject.reply("Hello Ada", greedy(4), io.StringIO())
    subject.reply("The kettle", greedy(4), io.StringIO())
    assert subject.reply("Hello Ada", greedy(4), io.StringIO()) == first
    assert subject.messages == []
    talk(run_dir / "plain", "/system Be kind.")
    notes = capsys.readouterr().err
    assert "It was trained on plain text: each line is a prompt of its own." in notes
    assert "knows no system message" in notes


def test_commands(run_dir, capsys):
    said = talk(run_dir / "dpo", "", "/reset", "/system Be kind.", "/system", "/what", "/quit", "Hello Ada.")
    assert said == ""
    notes = capsys.readouterr().err
    assert notes.count("a new conversation") == 3
    assert notes.count("/quit (or Ctrl-D) leaves") == 2  # at the start, and for the unknown command


def test_a_prompt_without_room_for_a_reply_is_one_line_and_the_talk_goes_on(run_dir, capsys):
    long = "lamp " * 300
    replies = talk(run_dir / "dpo", long, "Hello Ada.", temperature=0)
    notes = capsys.readouterr().err.splitlines()
    assert len([line for line in notes if "leave no room for a reply in the model's context of 256" in line]) == 1
    assert replies == talk(run_dir / "dpo", "Hello Ada.", temperature=0)  # the long turn is forgotten


def test_a_reply_ends_with_the_context(run_dir):
    subject = conversation(run_dir, "dpo")
    line = "a" * (subject.replier.limit - 3 - len(subject.replier.codec.prompt([{"role": "user", "content": ""}])))
    ids = subject.replier.codec.prompt([{"role": "user", "content": line}])
    assert 0 < subject.replier.limit - len(ids) < 60
    subject.reply(line, greedy(500), io.StringIO())
    with pytest.raises(Unusable, match=r"; /reset starts over"):
        subject.reply("More, please; the lamp and the kettle too, and the radio.", greedy(8), io.StringIO())


def test_what_would_steer_a_terminal_is_not_written(run_dir, monkeypatch):
    subject = conversation(run_dir, "dpo")
    out = io.StringIO()
    monkeypatch.setattr(subject.replier, "stream", lambda *_: Stream(lambda _: iter(["\x1b[31m", "red\x07\n"])))
    assert subject.reply("Hello Ada.", greedy(4), out) == "\x1b[31mred\x07"
    assert out.getvalue() == "[31mred\n\n"


def test_stages_that_cannot_reply_or_changed_are_refused(run_dir, tiny_bert, tmp_path):
    add_stage(tmp_path / "bert", "sft", tiny_bert, labels=2, adapter=False)
    with pytest.raises(UserError, match="cannot write replies"):
        conversation(tmp_path / "bert", "sft")
    record = record_of(run_dir / "sft")
    broken = tmp_path / "broken" / "sft"
    broken.mkdir(parents=True)
    for path in (run_dir / "sft").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    record["probe"]["outputs"][0] += 1
    (broken / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="the model scores its probe sequence"):
        conversation(broken.parent, "sft")


def test_through_a_pipe_only_replies_are_on_stdout(run_dir):
    script = (
        "import pathlib, sys, rlhf.serving.chat; rlhf.serving.chat.chat(pathlib.Path(sys.argv[1]), max_new_tokens=8)"
    )
    command = [sys.executable, "-c", script, str(run_dir / "dpo")]
    done = subprocess.run(command, input="Hello Ada.\n", capture_output=True, text=True, check=True)
    assert done.stdout == talk(run_dir / "dpo", "Hello Ada.")
    assert "tiny:dpo" in done.stderr
