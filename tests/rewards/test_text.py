from rlhf.rewards.text import references, text_of


def test_a_completion_is_text_or_its_last_message():
    assert text_of(" Hello") == " Hello"
    assert text_of([{"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]) == "Two."
    assert text_of([]) == ""
    assert text_of([{"role": "assistant", "content": None}]) == ""


def test_a_reference_is_there_or_none():
    columns = {"answer": ["Blue", None, " ", 7, [{"role": "assistant", "content": "Red"}], 0]}
    assert references(columns, "answer", 6) == ["Blue", None, None, "7", "Red", "0"]
    assert references(columns, "reference", 2) == [None, None]
