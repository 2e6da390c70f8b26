import pytest
import torch

from rlhf.data.augment import noise, shift, word_dropout


def test_a_shift_moves_by_up_to_an_eighth_and_repeats_the_edge():
    image = torch.arange(16 * 8).view(1, 16, 8).float()
    rows, columns = torch.arange(16), torch.arange(8)
    expected = {
        (down, right): image[:, (rows + down).clamp(0, 15)][:, :, (columns + right).clamp(0, 7)]
        for down in range(-2, 3)
        for right in (-1, 0, 1)
    }
    torch.manual_seed(0)
    seen = set()
    for _ in range(300):
        moved = shift(image)
        (by,) = (by for by, one in expected.items() if torch.equal(moved, one))
        seen.add(by)
    assert seen == expected.keys()


def test_noise_has_its_size():
    torch.manual_seed(0)
    added = noise(torch.full((3, 64, 64), 0.5)) - 0.5
    assert added.mean().item() == pytest.approx(0, abs=0.005)
    assert added.std().item() == pytest.approx(0.1, abs=0.005)


def test_word_dropout_leaves_out_a_tenth_but_no_special_token():
    torch.manual_seed(0)
    ids = [101, *range(10), 102]
    kept = [word_dropout(ids, {101, 102}) for _ in range(500)]
    assert all(row[0] == 101 and row[-1] == 102 and row == sorted(row, key=ids.index) for row in kept)
    assert sum(len(row) - 2 for row in kept) / 5000 == pytest.approx(0.9, abs=0.02)


def test_a_text_of_one_word_keeps_it():
    assert all(word_dropout([101, 7, 102], {101, 102}) == [101, 7, 102] for _ in range(100))


def test_the_default_generator_decides():
    def draws():
        torch.manual_seed(3)
        image = torch.rand(1, 8, 8)
        return shift(image), noise(image), word_dropout(range(50), ())

    first, second = draws(), draws()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]
