"""Files that grow a batch at a time: where an interrupted one goes on."""

import pytest

from rlhf.evaluation.kept import GrowingFile


@pytest.mark.parametrize(
    ("text", "count", "done"),
    [
        ("", 5, 0),
        ("1\n", 5, 0),
        ("1\n2\n", 5, 2),
        ("1\n2\n3\n", 5, 2),
        ("1\n2\n3\n4", 5, 2),  # a torn line is none
        ("1\n2\n3\n4\n", 5, 4),
        ("1\n2\n3\n4\n5\n", 5, 5),  # the last batch is a short one
        ("1\n2\n3\n4\n5", 5, 4),
    ],
)
def test_a_file_goes_on_behind_its_last_whole_batch(tmp_path, text, count, done):
    file = tmp_path / "samples.jsonl"
    file.write_text(text)
    assert GrowingFile(file, 2, count).done == done
    assert file.read_text() == "".join(f"{number}\n" for number in range(1, done + 1))


def test_no_file_is_no_batch(tmp_path):
    assert GrowingFile(tmp_path / "new/samples.jsonl", 2, 5).done == 0
