"""The line of an error."""

from rlhf.errors import UserError


def test_a_line_keeps_its_beginning_and_its_end_and_no_more():
    line = str(UserError(f"a.yaml: name: {'x' * 100_000} is too long"))
    assert len(line) < 1300
    assert line.startswith("a.yaml: name: xxx")
    assert line.endswith("xxx is too long")


def test_what_does_not_print_is_escaped():
    assert str(UserError("a\nb\x1b\ud800é")) == r"a\nb\x1b\ud800é"
