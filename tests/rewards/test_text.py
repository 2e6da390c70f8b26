from rlhf.rewards.text import completion_text, references


def test_a_completion_is_text_or_its_last_message():
    assert completion_text(" Hello") == " Hello"
    turns = [{"role": "assistant", "content": content} for content in ("One.", "Two.")]
    assert completion_text(turns) == "Two."
    assert completion_text([]) == ""
    assert completion_text([{"role": "assistant", "content": None}]) == ""


def test_a_reference_is_there_or_none():
    columns = {"answer": ["Blue", None, " ", 7, [{"role": "assistant", "content": "Red"}], 0]}
    assert references(columns, "answer", 6) == ["Blue", None, None, "7", "Red", "0"]
    assert references(columns, "reference", 2) == [None, None]
