import torch
from transformers import DynamicCache, MistralConfig
from transformers.cache_utils import DynamicLayer

from rlhf.rollout.cache import RoomyLayer, is_plain, join


def states(rows, length, seed):
    torch.manual_seed(seed)
    return torch.randn(2, rows, 3, length, 4)


def test_a_roomy_layer_is_a_dynamic_one():
    plain, roomy = DynamicLayer(), RoomyLayer(*states(5, 6, 0), room=8)
    plain.update(*states(5, 6, 0))
    for rows, length, seed, kept in ((5, 1, 1, None), (5, 2, 2, [0, 2, 4]), (3, 1, 3, [2, 1]), (2, 4, 4, None)):
        found, expected = (layer.update(*states(rows, length, seed)) for layer in (roomy, plain))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
        if kept:
            for layer in (roomy, plain):
                layer.batch_select_indices(torch.tensor(kept))
        assert torch.equal(roomy.keys, plain.keys)
        assert torch.equal(roomy.values, plain.values)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)


def test_writing_in_place_makes_no_new_tensor():
    layer = RoomyLayer(*states(5, 6, 0), room=2)
    where = layer.keys.data_ptr()
    layer.update(*states(5, 1, 1))
    layer.update(*states(5, 1, 2))
    assert layer.keys.data_ptr() == where


def test_joined_caches_end_together():
    short, long = DynamicCache(), DynamicCache()
    for layer in range(2):
        short.update(*states(1, 2, layer), layer)
        long.update(*states(2, 5, 10 + layer), layer)
    both = join([short, long], samples=2, room=3)
    assert both.get_seq_length() == 5
    for layer in range(2):
        for found, own, other in zip(
            (both.layers[layer].keys, both.layers[layer].values), states(1, 2, layer), states(2, 5, 10 + layer),
            strict=True,
        ):  # fmt: skip
            assert found.shape == (6, 3, 5, 4)
            assert (found[:2, :, :3] == 0).all()
            for row in (0, 1):
                assert torch.equal(found[row, :, 3:], own[0])
            for row, of in ((2, 0), (3, 0), (4, 1), (5, 1)):
                assert torch.equal(found[row], other[of])
    both.update(*states(6, 1, 99), 0)
    assert both.layers[0].keys.shape[2] == 6


def test_a_window_is_not_plain():
    assert is_plain(DynamicCache())
    config = MistralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    assert not is_plain(DynamicCache(config=config))
