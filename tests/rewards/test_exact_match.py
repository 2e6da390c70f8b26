import gzip
import json

import pytest

from rlhf.rewards.exact_match import exact_match, final_number


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        ("3 + 4 is 7.", "7"),
        ("48/2 = 24, so #### 72", "72"),
        ("#### 72", "She sold 48/2 = <<48/2=24>>24 clips.\n#### 72"),
        ("#### **72** clips\n\nQuestion: what is 5?", "72"),
        ("#### Step 1\n3 and 4\n#### Step 2\nThat makes 7", "7"),
        ("It costs $1,234.00.", "1234"),
        ("It costs 1234", "$1,234"),
        ("10-3=7", "7"),
        ("one of 6-7", "7"),
        ("x is -5", "-5"),
        ("-$5", "\u22125"),
        ("50%", "50"),
        ("One half, 0.5", "1/2"),
        (r"\boxed{1{2}} no, $\boxed{\$1,000}$ of 3", "1000"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"The sky is \boxed{Blue}", "blue"),
        (" the  SKY.\n", "The sky"),
        ("Because. #### Yes", "It is. #### yes"),
        ("#### No\nOr rather\n#### Yes", "yes"),
        ("in all 72", "72 clips"),
        ("7", 7.0),
    ],
)
def test_right(reply, reference):
    assert exact_match(["q"], [reply], answer=[reference]) == [1.0]


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        ("7 and 8", "7"),
        ("#### 5, or 72", "72"),
        ("-5", "5"),
        ("5", "-5"),
        ("1,5", "15"),
        ("12340", "1,234.0"),
        ("0.5", "5"),
        (r"\boxed{3} of 7", "7"),
        (r"7 \boxed{none}", "7"),
        ("so 2", "x^2"),
        ("so 2", "2x"),
        ("so 4", "3 + 4"),
        ("the sky", "sky"),
        ("", "7"),
        ("9" * 5000, "9"),
    ],
)
def test_wrong(reply, reference):
    assert exact_match(["q"], [reply], answer=[reference]) == [0.0]


def test_no_reference_is_no_score():
    assert exact_match(["q"] * 3, ["7", "7", "7"], answer=["7", None, ""]) == [1.0, None, None]
    assert exact_match(["q"], ["7"], other=["7"]) == [None]


def test_messages_and_a_column_of_another_name():
    reply = [{"role": "assistant", "content": "It is 7."}]
    assert exact_match([[{"role": "user", "content": "q"}]], [reply], column="gold", gold=[7], answer=["8"]) == [1.0]


def test_a_text_without_a_number_has_none():
    assert final_number("none at all") is None
    assert final_number("9" * 5000) is None


@pytest.mark.parametrize("name", ["train", "test"])
def test_gsm8k_answers_match_themselves_and_little_else(real, name):
    with gzip.open(real / f"gsm8k/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        worked = [json.loads(line)["answer"] for line in file]
    final = [answer.partition("####")[2] for answer in worked]
    assert len(worked) > 500
    for reference in (worked, final):
        assert set(exact_match(worked, worked, answer=reference)) == {1.0}
    shifted = exact_match(worked, worked, answer=[*final[1:], final[0]])
    assert sum(shifted) < 0.03 * len(shifted), "the next question's answer is right by chance alone"
    without_mark = [answer.replace("####", "So the answer is") for answer in worked]
    assert set(exact_match(worked, without_mark, answer=final)) == {1.0}
