"""Masks, EOS and limits, on a tokenizer whose tokens are easy to count: every byte is one."""

import copy

import pytest
from transformers import AutoTokenizer

from rlhf.data.records import Demonstration, Image, Labelled, Preference, Spanned, Unusable
from rlhf.data.tokenize import IGNORED, PLAIN_TEMPLATE, Codec
from rlhf.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = (  # like templates that drop the reasoning of earlier turns
    "{% for m in messages %}[{{ m['role'] }}]"
    "{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token a byte, plus <end>, <pad>, <|im_start|> and <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(["<end>", "<pad>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<pad>")


def codec(tokenizer, template=PLAIN_TEMPLATE, eos="<end>", **options) -> Codec:
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    return Codec(tokenizer, **options)


def turn(role, content):
    return {"role": role, "content": content}


def learned(encoded, tokenizer) -> str:
    """The text that carries loss."""
    return tokenizer.decode([token for token in encoded.columns["labels"] if token != IGNORED])


def whole(encoded, tokenizer) -> str:
    return tokenizer.decode(encoded.columns["input_ids"])


def test_plain_text_learns_the_completion_and_one_end(byte_tokenizer):
    row = codec(byte_tokenizer).demonstration(Demonstration("Ask.", " Answer."))
    assert whole(row, byte_tokenizer) == "Ask. Answer.<end>"
    assert learned(row, byte_tokenizer) == " Answer.<end>"
    assert row.columns["labels"][:4] == [IGNORED] * 4
    assert not row.truncated
    assert not row.eos_lost


@pytest.mark.parametrize("completion", [" Answer.<end>", " Answer.<end><end>"])
def test_an_end_that_is_there_is_not_doubled(byte_tokenizer, completion):
    row = codec(byte_tokenizer).demonstration(Demonstration("Ask.", completion))
    assert whole(row, byte_tokenizer) == "Ask. Answer.<end>"


def test_a_role_that_the_plain_template_does_not_know_is_no_reply(byte_tokenizer):
    for role in ("human", "tool", "User", ""):
        with pytest.raises(Unusable, match=f"its roles are system, user and assistant, not {role}"):
            codec(byte_tokenizer).demonstration(Demonstration([turn(role, "Ask.")], [turn("assistant", "Yes.")]))


def test_text_without_a_prompt_learns_all_of_it(byte_tokenizer):
    row = codec(byte_tokenizer).demonstration(Demonstration("", "Once."))
    assert learned(row, byte_tokenizer) == "Once.<end>"


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (PLAIN_TEMPLATE, "<end>", " Hi.<end>"),
        (CHATML, "<|im_end|>", "Hi.<|im_end|>\n"),
        (NO_END, "<end>", "Hi.<end>"),
    ],
)
def test_a_chat_learns_the_reply_with_its_end(byte_tokenizer, template, eos, expected):
    record = Demonstration([turn("user", "Hello")], [turn("assistant", "Hi.")])
    row = codec(byte_tokenizer, template, eos).demonstration(record)
    assert learned(row, byte_tokenizer) == expected
    assert whole(row, byte_tokenizer).count(eos) == (2 if template == CHATML else 1)


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (PLAIN_TEMPLATE, "<end>", " One.<end> Two.<end>"),
        (CHATML, "<|im_end|>", "One.<|im_end|>\nTwo.<|im_end|>\n"),
        (NO_END, "<end>", "One.Two.<end>"),
        (FORGETFUL, "<end>", "Two.<end>"),  # where the first reply stood cannot be known: the last alone is learned
    ],
)
def test_of_several_turns_the_assistants_alone_are_learned(byte_tokenizer, template, eos, expected):
    record = Demonstration(
        [turn("system", "Be kind."), turn("user", "First?")],
        [turn("assistant", "One."), turn("user", "Second?"), turn("assistant", "Two.")],
    )
    assert learned(codec(byte_tokenizer, template, eos).demonstration(record), byte_tokenizer) == expected


def test_a_limit_keeps_the_start_or_the_end(byte_tokenizer):
    record = Demonstration("Ask.", " Answer.")  # 4 + 8 + 1 tokens
    row = codec(byte_tokenizer, max_length=10).demonstration(record)
    assert whole(row, byte_tokenizer) == "Ask. Answe"
    assert (row.truncated, row.eos_lost, row.prompt_trimmed) == (True, True, False)
    row = codec(byte_tokenizer, max_length=10, keep="keep_end").demonstration(record)
    assert whole(row, byte_tokenizer) == ". Answer.<end>"
    assert (row.truncated, row.eos_lost, row.prompt_trimmed) == (True, False, True)
    with pytest.raises(Unusable, match="prompt longer than max_length"):
        codec(byte_tokenizer, max_length=4).demonstration(record)
    with pytest.raises(UserError, match="truncation_mode"):
        codec(byte_tokenizer, keep="middle")


def test_a_pair_shares_its_prompt(byte_tokenizer):
    columns = codec(byte_tokenizer).pair(Preference("Ask.", " Yes.", " No.")).columns
    assert [byte_tokenizer.decode(columns[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids")] == [
        "Ask.", " Yes.<end>", " No.<end>",
    ]  # fmt: skip


def test_a_pair_over_the_limit(byte_tokenizer):
    record = Preference("Ask.", " Yes, surely.", " No.")  # 4 + 13 + 1 and 4 + 4 + 1
    row = codec(byte_tokenizer, max_length=10).pair(record)
    assert byte_tokenizer.decode(row.columns["chosen_ids"]) == " Yes, "
    assert byte_tokenizer.decode(row.columns["rejected_ids"]) == " No.<end>"
    assert (row.truncated, row.eos_lost) == (True, True)
    row = codec(byte_tokenizer, max_length=16, keep="keep_end").pair(record)
    assert byte_tokenizer.decode(row.columns["prompt_ids"]) == "k."
    assert byte_tokenizer.decode(row.columns["rejected_ids"]) == " No.<end>"
    assert (row.truncated, row.eos_lost, row.prompt_trimmed) == (True, False, True)
    with pytest.raises(Unusable, match="prompt longer"):
        codec(byte_tokenizer, max_length=4).pair(record)
    with pytest.raises(Unusable, match="reply longer"):
        codec(byte_tokenizer, max_length=8, keep="keep_end").pair(record)
    with pytest.raises(Unusable, match="identical within max_length"):
        codec(byte_tokenizer, max_length=6).pair(Preference("Ask.", " Yes.", " Yep."))


def test_a_reward_model_never_reads_a_cut_sequence(byte_tokenizer):
    record = Preference("Ask.", " Yes.", " No.")
    columns = codec(byte_tokenizer, max_length=10).scored_pair(record).columns
    assert byte_tokenizer.decode(columns["chosen_ids"]) == "Ask. Yes.<end>"
    with pytest.raises(Unusable, match="longer than max_length"):
        codec(byte_tokenizer, max_length=9).scored_pair(record)


def test_what_generation_reads_is_what_training_showed(byte_tokenizer):
    for template, eos in ((PLAIN_TEMPLATE, "<end>"), (CHATML, "<|im_end|>"), (NO_END, "<end>")):
        tested = codec(byte_tokenizer, template, eos)
        prompt = [turn("user", "Hello")]
        full, start = tested.sequence(prompt, [turn("assistant", "Hi.")])
        assert tested.prompt(prompt) == full[:start]


def test_a_template_that_refuses_a_role_makes_the_row_unusable(byte_tokenizer):
    strict = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    with pytest.raises(Unusable, match="the chat template refuses it: no system"):
        codec(byte_tokenizer, strict).prompt([turn("system", "x"), turn("user", "y")])


def test_no_eos_is_refused(byte_tokenizer):
    with pytest.raises(UserError, match="no EOS token"):
        codec(byte_tokenizer, eos=None)


def test_an_encoder_frames_the_text_itself(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.chat_template = PLAIN_TEMPLATE
    encoder = Codec(tokenizer, max_length=20, encoder=True)
    chosen = encoder.scored_pair(
        Preference([turn("user", "lamp")], [turn("assistant", "on")], [turn("assistant", "off")])
    ).columns["chosen_ids"]
    assert chosen[0] == tokenizer.cls_token_id
    assert chosen[-1] == tokenizer.sep_token_id
    assert chosen.count(tokenizer.sep_token_id) == 1


def test_an_encoder_reads_a_plain_prompt_and_its_completion_as_two_segments(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    pair, alone = tokenizer("lamp", "off")["input_ids"], tokenizer("off")["input_ids"]
    assert pair == [*tokenizer("lamp")["input_ids"], *alone[1:]], "so that lamp and off are no word"
    encoder = Codec(tokenizer, encoder=True)
    assert encoder.scored_pair(Preference("lamp", "off", "on")).columns["chosen_ids"] == pair
    assert encoder.sequence("lamp", "off") == (pair, 0)
    assert encoder.sequence("", "off")[0] == alone
    assert (
        Codec(tokenizer, encoder=True, segments=False).sequence("lamp", "off")[0] == tokenizer("lampoff")["input_ids"]
    )


def test_a_tokenizer_without_a_frame_for_two_segments_reads_one_text(tiny_bert):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    single = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.backend_tokenizer.post_processor = single
    assert Codec(tokenizer, encoder=True).sequence("lamp ", "off")[0] == tokenizer("lamp off")["input_ids"]


def test_a_classifier_gets_a_text_and_the_names_of_its_classes(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    encoder = Codec(tokenizer, max_length=20, encoder=True)
    assert encoder.labelled(Labelled("lamp", ("off",))).columns == {
        "input_ids": tokenizer("lamp")["input_ids"],
        "classes": ["off"],
    }
    assert encoder.labelled(Labelled("lamp", (), multi=True)).columns["classes"] == []
    assert encoder.labelled(Labelled("lamp " * 30, ("on", "dim"), multi=True)).truncated
    for record, message in (
        (Demonstration("a", "b"), "a classifier of texts learns from `text` and `label`, not from a reply"),
        (Demonstration("", "b", {"label": 0.5}), "the name or number of a class in `label`; here it is '0.5'"),
        (Demonstration("", "b", {"category": "on"}), r"if 'category' is the class: columns: {label: category}"),
        (Spanned("a", "b", ()), "not from a question about a text"),
        (Labelled(Image("lamp.png"), ("on",)), "an image"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.labelled(record)
    for record in (Labelled("lamp", ("off",)), Spanned("a", "b", ())):
        with pytest.raises(UserError, match="train an encoder"):
            encoder.demonstration(record)


def test_what_follows_a_reply(tiny_tokenizer):
    """EOS alone; or the template's own mark, a line break and EOS, where the template writes these."""
    eos = tiny_tokenizer.eos_token_id
    chat = [{"role": "user", "content": "Hello"}]
    assert Codec(tiny_tokenizer).ending("Hello") == [eos]
    assert Codec(tiny_tokenizer).ending(chat) == [eos]
    other = copy.deepcopy(tiny_tokenizer)
    other.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '##\n' }}{% endfor %}"
    mark = other("##\n")["input_ids"]
    assert Codec(other).ending(chat) == [*mark, eos]


def test_the_prompt_of_a_pair_is_tokenised_once(byte_tokenizer, monkeypatch):
    made = codec(byte_tokenizer, CHATML, "<|im_end|>")
    asked = []
    whole_prompt = made.prompt
    monkeypatch.setattr(made, "prompt", lambda prompt: asked.append(prompt) or whole_prompt(prompt))
    first, second = ([turn("user", text)] for text in ("one", "two"))
    sides = [turn("assistant", "a")], [turn("assistant", "b")]
    rows = [made.pair(Preference(prompt, *sides)) for prompt in (first, second, first)]
    assert asked == [first, second, first]
    assert rows[0] == rows[2] != rows[1]


def test_a_row_without_a_token_to_learn_from_is_refused(byte_tokenizer):
    """A template that shows no reply leaves nothing that the loss could be on."""
    silent = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}<end>"
    row = Demonstration([turn("user", "Ask.")], [turn("assistant", "Answer.")])
    with pytest.raises(Unusable, match=r"^no token to learn from$"):
        codec(byte_tokenizer, silent).demonstration(row)


TALK = [turn("user", "one"), turn("assistant", "two"), turn("user", "three")]
ANSWERS = [turn("assistant", "four")], [turn("assistant", "five")]


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, CHATML, NO_END, FORGETFUL])
def test_what_is_tokenised_ahead_is_the_same(byte_tokenizer, template):
    records = [
        Preference(TALK, *ANSWERS),
        Preference(TALK[:1], *ANSWERS),
        Preference("Ask.", " a", " b"),
        Demonstration(TALK[:1], [*TALK[1:], *ANSWERS[0]]),
        Demonstration("Ask.", " a"),
    ]
    made = codec(byte_tokenizer, template)
    encoders = {Preference: [made.pair, made.scored_pair], Demonstration: [made.demonstration]}
    expected = [encode(record) for record in records for encode in encoders[type(record)]]
    for _ in range(2):
        made.ahead(records)
        assert [encode(record) for record in records for encode in encoders[type(record)]] == expected


def test_nothing_that_was_tokenised_ahead_is_tokenised_again(byte_tokenizer, monkeypatch):
    made = codec(byte_tokenizer, CHATML, "<|im_end|>")
    records = [Preference([turn("user", text)], *ANSWERS) for text in ("one", "two")]
    made.ahead(records)
    calls = []
    tokenise = type(byte_tokenizer).__call__
    monkeypatch.setattr(
        type(byte_tokenizer), "__call__", lambda *given, **options: calls.append(given) or tokenise(*given, **options)
    )
    for record in records:
        made.pair(record)
    assert not calls
    made.pair(records[0])  # asked for a second time
    assert len(calls) == 3
    made.ahead(records, prompts=False)
    calls.clear()
    made.scored_pair(records[0])
    assert not calls
    made.pair(records[1])
    assert [given[1] for given in calls] == ["<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"]


def test_a_conversation_that_the_template_refuses_is_refused_later(byte_tokenizer):
    with pytest.raises(Unusable, match=r"the chat template refuses it: .*by zero"):
        codec(byte_tokenizer, "{{ 1 / 0 }}").pair(Preference(TALK, *ANSWERS))
    picky = "{{ raise_exception('no') if messages|length > 2 }}x"
    made = codec(byte_tokenizer, picky)
    made.ahead([Preference(TALK, *ANSWERS)])
    with pytest.raises(Unusable, match="the chat template refuses it: no"):
        made.pair(Preference(TALK, *ANSWERS))
