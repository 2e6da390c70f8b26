"""The columns that reward functions are called with."""

from rlhf.rewards import columns_of


def test_a_row_without_a_column_has_none():
    assert columns_of([{"answer": 4}, {"level": "easy"}]) == {"answer": [4, None], "level": [None, "easy"]}


def test_columns_that_bear_the_names_of_arguments_are_left_out():
    assert columns_of([{"prompts": 1, "completions": 2, "prompt": 3}]) == {"prompt": [3]}


def test_no_rows_have_no_columns():
    assert columns_of([]) == {}
