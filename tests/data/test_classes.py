import pytest

from rlhf.data.classes import check_known, class_names
from rlhf.errors import UserError


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        ({"neg", "pos"}, ["neg", "pos"]),  # the numbers that such rows used to have
        ({"1", "0"}, ["0", "1"]),
        ({"10", "9"}, [str(number) for number in range(11)]),
        ({"3", "1"}, ["0", "1", "2", "3"]),
        ({"2", "10", "-1"}, ["-1", "10", "2"]),
        ({"07", "8"}, ["07", "8"]),  # the name 7 would be another
        ({"²", "1"}, ["1", "²"]),
        ({"b", "a", "10"}, ["10", "a", "b"]),
    ],
)
def test_the_order_of_a_classifiers_outputs(names, outputs):
    assert class_names(names) == outputs


def test_numbers_are_filled_up_within_reason():
    assert len(class_names({"0", "77", "999"})) == 1000
    with pytest.raises(UserError, match="has 2 classes, and labels up to 1000000000: number the classes"):
        class_names({"0", str(10**9)})


def test_one_class_is_too_few():
    with pytest.raises(UserError, match=r"every row of data.demonstrations has label joy: there is nothing to tell"):
        class_names({"joy"})
    with pytest.raises(UserError, match="no row has a label"):
        class_names(())


@pytest.mark.parametrize("label", [None, "pos", ["pos", "neg"], []])
def test_a_label_that_is_known_passes(label):
    check_known(label, {"pos", "neg"}, "data.rollouts")


@pytest.mark.parametrize(("label", "named"), [("neutral", "neutral"), (["pos", "neutral"], "neutral"), (3, "3")])
def test_a_label_that_is_no_class_is_refused(label, named):
    with pytest.raises(UserError, match=f"data.rollouts: label '{named}'"):
        check_known(label, {"pos", "neg"}, "data.rollouts")
