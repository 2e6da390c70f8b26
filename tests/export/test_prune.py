"""Which weights go, by hand; and that what is left is counted."""

import contextlib

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rlhf.errors import UserError
from rlhf.export.prune import Pruning, check_prunes, input_norms, kept, linear_layers, prune, pruning, score
from rlhf.export.run import settings_of
from tests.export.test_run import exported, outputs

WEIGHT_OI = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.5, -1.0]])
NORM_I = torch.tensor([10.0, 1.0, 0.1])
THIRD = Pruning("wanda", 1 / 3)


def test_wanda_by_hand():
    """|W| times the norm: rows 10, 2, 0.3 and 40, 0.5, 0.1; the last of each goes, though 3 is its row's largest."""
    score_OI = score(WEIGHT_OI, NORM_I)
    torch.testing.assert_close(score_OI, torch.tensor([[10.0, 2.0, 0.3], [40.0, 0.5, 0.1]]))
    assert kept(score_OI, THIRD).tolist() == [[True, True, False], [True, True, False]]


def test_magnitude_by_hand():
    assert kept(score(WEIGHT_OI, None), THIRD).tolist() == [[False, True, True], [True, False, True]]


def test_a_share_is_rounded_down_and_ties_go_in_order():
    """Of 3 weights half is one; of equal scores the first goes."""
    assert kept(torch.ones(2, 3), Pruning("magnitude", 0.5)).tolist() == [[False, True, True]] * 2
    assert kept(torch.ones(1, 10), Pruning("magnitude", 0.3)).sum() == 7  # 0.3 * 10 is 2.9999… in floats


def test_two_of_four_in_every_group():
    score_OI = torch.tensor([[1.0, 2, 3, 4, 8, 7, 6, 5, 0.1]])
    assert kept(score_OI, pruning("magnitude", "2:4")).tolist() == [
        [False, False, True, True, True, True, False, False, True]
    ]  # the ninth has no group of its own, and stays


def test_norms_are_those_of_what_a_layer_reads(sharp_llama):
    model = AutoModelForCausalLM.from_pretrained(sharp_llama).eval()
    rows = [torch.tensor([[5, 9, 30]]), torch.tensor([[8, 12, 44, 45]])]
    norms, count = input_norms(model, [lambda ids=ids: model(input_ids=ids) for ids in rows])
    assert count == 2
    assert set(norms) == set(linear_layers(model))
    layer = model.model.layers[0]
    with torch.no_grad():
        read = torch.cat([layer.input_layernorm(model.model.embed_tokens(ids))[0] for ids in rows])
    torch.testing.assert_close(norms["layers.0.self_attn.q_proj"], read.norm(dim=0), atol=1e-5, rtol=1e-5)


def test_zeros_are_counted_and_head_and_embeddings_stay(sharp_llama):
    model = AutoModelForCausalLM.from_pretrained(sharp_llama)
    embeddings = model.model.embed_tokens.weight.clone()
    counted = prune(model, Pruning("magnitude", 0.5))
    assert counted.layers == 14
    assert counted.zeros == 0.5
    for layer in linear_layers(model).values():
        assert ((layer.weight == 0).sum(1) == layer.in_features // 2).all()
    torch.testing.assert_close(model.model.embed_tokens.weight, embeddings)
    pruned = sum(layer.weight.numel() for layer in linear_layers(model).values())
    assert counted.zeros_of_all == pruned / 2 / model.num_parameters()


@pytest.mark.parametrize(("sparsity", "fits"), [("0.01", False), ("1:128", False), ("2:4", True), ("0.02", True)])
def test_a_share_that_sets_nothing_to_zero_is_refused(sharp_llama, sparsity, fits):
    """The shortest rows have 64 inputs: 0.02 of them is one weight, 0.01 is none."""
    model = AutoModelForCausalLM.from_pretrained(sharp_llama)
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="nothing to zero in rows of 64"):
        check_prunes(model, pruning("magnitude", sparsity))


def test_the_head_of_a_model_that_is_its_own_backbone_stays(tiny_t5):
    """Two layers of an encoder with six matrices, two of a decoder with ten; the head is tied to the embeddings."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    head = model.lm_head.weight.clone()
    assert prune(model, Pruning("magnitude", 0.5)).layers == 2 * 6 + 2 * 10
    torch.testing.assert_close(model.lm_head.weight, head)
    torch.testing.assert_close(model.shared.weight, head)


@pytest.mark.parametrize("gpt2", [True, False])
def test_a_transposed_layer_is_pruned_in_the_rows_of_its_outputs(tiny_gpt2, tiny_llama, gpt2):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2 if gpt2 else tiny_llama)
    prune(model, Pruning("magnitude", 0.25))
    layer = model.transformer.h[0].mlp.c_fc if gpt2 else model.model.layers[0].mlp.up_proj
    weight_OI = layer.weight.t() if gpt2 else layer.weight
    assert ((weight_OI == 0).sum(1) == weight_OI.shape[1] // 4).all()


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_a_pruned_export_has_the_zeros_and_says_so(run_dir, tmp_path, stage):
    result = exported(run_dir, stage, tmp_path / "out", settings_of("merged", "wanda", None, False))
    assert result["pruning"]["rows"] > 10
    assert result["pruning"]["zeros"] == 0.5
    assert result["probe"]["written"] == pytest.approx(result["probe"]["exported"], abs=1e-3)
    assert result["probe"]["written"] != pytest.approx(result["probe"]["recorded"], abs=1e-2)
    if stage == "dpo":
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert outputs(model) == pytest.approx(result["probe"]["exported"], abs=1e-4)
        assert ((model.model.layers[1].mlp.down_proj.weight == 0).sum(1) == 64).all()
    again = exported(run_dir, stage, tmp_path / "again", settings_of("merged", "wanda", None, False))
    assert again["probe"] == result["probe"]


def test_fewer_zeros_change_less(run_dir, tmp_path):
    changes = []
    for sparsity in ("0.05", "0.5"):
        settings = settings_of("merged", "magnitude", sparsity, False)
        seen = exported(run_dir, "dpo", tmp_path / sparsity, settings)["probe"]
        changes.append(sum(abs(now - was) for was, now in zip(seen["recorded"], seen["exported"], strict=True)))
    assert changes == sorted(changes)
