import pytest

from rlhf.data.records import Unusable
from rlhf.data.windows import WindowCodec, own_tokens, text_of, tokens_of, window_ranges
from rlhf.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def test_windows_overlap_until_all_tokens_are_covered():
    assert window_ranges(10, 10, 5) == [(0, 10)]
    assert window_ranges(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert window_ranges(9, 4, 1) == [(0, 4), (3, 7), (6, 9)]
    assert window_ranges(3, 1, 0) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(("tokens", "room", "overlap"), [(10, 4, 2), (23, 8, 3), (9, 4, 1), (5, 9, 4), (3, 1, 0)])
def test_each_token_belongs_to_the_window_where_it_has_most_context(tokens, room, overlap):
    ranges = window_ranges(tokens, room, overlap)
    own = own_tokens(ranges)
    assert [token for first, last in own for token in range(first, last)] == list(range(tokens))
    for number, (first, last) in enumerate(own):
        for token in range(first, last):
            contexts = [min(token - a, b - 1 - token) if a <= token < b else -1 for a, b in ranges]
            assert contexts[number] == max(contexts)


def test_a_window_has_the_question_and_a_part_of_the_context(tokenizer):
    question, context = "Who asks?", "Ada asks about lamp 1. Ben asks about chair 2."
    whole = tokenizer(question, context)["input_ids"]
    single = WindowCodec(tokenizer).windows(question, context)
    assert [window.ids for window in single.windows] == [whole]
    long = WindowCodec(tokenizer, len(whole) - 5).windows(question, context)
    assert len(long.windows) > 1
    assert long.offsets == single.offsets
    tokens = whole[single.windows[0].place : -1]
    for window in long.windows:
        assert len(window.ids) <= len(whole) - 5
        assert window.ids[: window.place] == whole[: window.place]
        assert window.ids[-1] == whole[-1]
        assert window.ids[window.place : -1] == tokens[window.first : window.first + window.size]
        assert window.ids[window.none] == tokenizer.cls_token_id


def test_a_question_without_room_for_the_context_is_unusable(tokenizer):
    with pytest.raises(Unusable):
        WindowCodec(tokenizer, 4).windows("Who asks about what?", "Ada asks.")
    with pytest.raises(Unusable):
        WindowCodec(tokenizer).windows("Who?", " ")


def test_characters_and_tokens_lead_to_one_another(tokenizer):
    context = "Ada asks about lamp 1. Ben asks."
    _, offsets = WindowCodec(tokenizer).windows("Who?", context)
    for words in ("Ada", "asks about", "lamp 1", "Ben asks."):
        start = context.index(words)
        assert text_of(context, offsets, *tokens_of((start, start + len(words)), offsets)) == words
    with pytest.raises(Unusable):
        tokens_of((3, 4), offsets)


def test_a_tokenizer_must_know_characters_and_frame_a_pair(tokenizer, tiny_tokenizer):
    with pytest.raises(UserError, match="CLS"):
        WindowCodec(tiny_tokenizer)

    class Slow:
        is_fast, name_or_path = False, "slow"

    with pytest.raises(UserError, match="fast"):
        WindowCodec(Slow())
