import torch
from transformers import DynamicCache, Qwen2Config, Qwen3_5TextConfig
from transformers.cache_utils import DynamicLayer

from rlhf.policies.cache import PreallocatedLayer, has_attention, is_recurrent, join


def states(rows, length, seed):
    torch.manual_seed(seed)
    return torch.randn(2, rows, 3, length, 4)


def test_a_roomy_layer_is_a_dynamic_one():
    plain, roomy = DynamicLayer(), PreallocatedLayer(*states(5, 6, 0), room=8)
    plain.update(*states(5, 6, 0))
    for rows, length, seed, kept in ((5, 1, 1, None), (5, 2, 2, [0, 2, 4]), (3, 1, 3, [2, 1]), (2, 4, 4, None)):
        result, expected = (layer.update(*states(rows, length, seed)) for layer in (roomy, plain))
        for one, other in zip(result, expected, strict=True):
            assert torch.equal(one, other)
        if kept:
            for layer in (roomy, plain):
                layer.reorder_cache(torch.tensor(kept))
        assert torch.equal(roomy.keys, plain.keys)
        assert torch.equal(roomy.values, plain.values)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)


def test_writing_in_place_makes_no_new_tensor():
    layer = PreallocatedLayer(*states(5, 6, 0), room=2)
    where = layer.keys.data_ptr()
    layer.update(*states(5, 1, 1))
    layer.update(*states(5, 1, 2))
    assert layer.keys.data_ptr() == where


def test_joined_caches_end_together():
    short, long = DynamicCache(), DynamicCache()
    for layer in range(2):
        short.update(*states(1, 2, layer), layer)
        long.update(*states(2, 5, 10 + layer), layer)
    both = join([short, long], torch.arange(3).repeat_interleave(2), room=3)
    assert both.get_seq_length() == 5
    for layer in range(2):
        for result, own, other in zip(
            (both.layers[layer].keys, both.layers[layer].values), states(1, 2, layer), states(2, 5, 10 + layer),
            strict=True,
        ):  # fmt: skip
            assert result.shape == (6, 3, 5, 4)
            assert (result[:2, :, :3] == 0).all()
            for row in (0, 1):
                assert torch.equal(result[row, :, 3:], own[0])
            for row, of in ((2, 0), (3, 0), (4, 1), (5, 1)):
                assert torch.equal(result[row], other[of])
    both.update(*states(6, 1, 99), 0)
    assert both.layers[0].keys.shape[2] == 6


WINDOW = {"num_hidden_layers": 2, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}


def test_joined_windows_see_what_they_saw():
    """Beyond the window only its last tokens are there, and the mask is counted from where they stand."""
    config = Qwen2Config(**WINDOW, use_sliding_window=True)
    short, long = DynamicCache(config=config), DynamicCache(config=config)
    short.update(*states(1, 2, 0), 0)
    long.update(*states(2, 7, 1), 0)
    kept = long.layers[0].keys
    both = join([short, long], torch.tensor([0, 0, 1, 2]), room=3).layers[0]
    assert both.get_mask_sizes(1) == long.layers[0].get_mask_sizes(1) == (4, 4)
    assert torch.equal(both.keys[0, :, 1:], states(1, 2, 0)[0][0])
    assert torch.equal(both.keys[2:], kept[-2:])


def test_joined_states_keep_their_rows():
    config = Qwen3_5TextConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    one, two = DynamicCache(config=config), DynamicCache(config=config)
    assert is_recurrent(one)
    assert has_attention(one)
    for cache, rows, seed in ((one, 1, 0), (two, 2, 1)):
        cache.layers[0].update_conv_state(states(rows, 3, seed)[0][:, 0])
        cache.layers[0].update_recurrent_state(states(rows, 3, seed)[1])
        cache.update(*states(rows, 3, seed), 1)
    both = join([one, two], torch.tensor([0, 1, 1, 2]), room=3)
    for row, (seed, of) in enumerate([(0, 0), (1, 0), (1, 0), (1, 1)]):
        assert torch.equal(both.layers[0].recurrent_states[0][row], states(1 + seed, 3, seed)[1][of])
        assert torch.equal(both.layers[0].conv_states[0][row], states(1 + seed, 3, seed)[0][of, 0])
    both.reorder_cache(torch.tensor([3]))
    assert torch.equal(both.layers[0].recurrent_states[0][0], states(2, 3, 1)[1][1])
