"""Sequences that share what they begin with are scored as if each stood alone."""

import pytest
from transformers import AutoModelForSequenceClassification

from rlhf.prefix_sharing.fold import fold, is_folded
from rlhf.rewards.model import score_groups


@pytest.fixture
def scorer(tiny_llama):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    return model


def test_padding_and_order_do_not_change_a_score(scorer):
    rows = [[5, 9, 30], [8, 12, 44, 45, 46, 60, 61], [7, 9]]
    alone = [score_groups(scorer, [[row]])[0][0] for row in rows]
    assert [score for (score,) in score_groups(scorer, [[row] for row in rows], 2)] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("folded_before", [False, True])
def test_groups_of_any_sizes_are_their_sequences(scorer, folded_before):
    """Replies to one prompt share it; groups of one, two and three in one call, one of them of no sequence."""
    prompt = [5, 9, 30, 31, 8, 12, 44, 45]
    groups = [
        [[*prompt, 3], [*prompt, 4, 6], prompt], [[7, 9]], [], [[7, 9, 3], [7, 9, 4]], [[8, *prompt], [8, *prompt, 5]],
    ]  # fmt: skip
    expected = [[score_groups(scorer, [[row]])[0][0] for row in group] for group in groups]
    made = fold(scorer) if folded_before else None
    found = score_groups(scorer, groups, batch_size=3)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert is_folded(scorer) is folded_before
    if made is not None:
        made.remove()


def test_a_shared_prompt_is_scored_once(scorer):
    seen = []
    scorer.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    prompt = list(range(100))
    score_groups(scorer, [[[*prompt, reply] for reply in range(4)]])
    assert seen[-1] == 104
