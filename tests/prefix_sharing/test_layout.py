import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, BartConfig, GPT2Config, OPTConfig

from rlhf.prefix_sharing.forward import last_hidden
from rlhf.prefix_sharing.head import completion_log_probs, head_at
from rlhf.prefix_sharing.layout import block_mask, lay_out, visible_pairs
from tests.support.families import causal
from tests.support.models import strengthened, strong

PROMPTS = [[5, 9, 30, 31], [8, 12, 44, 45, 46, 60, 61], [7], [15, 16]]
REPLIES = [
    [[31, 32, 33], [40], [50, 51, 52, 53, 54]],
    [[60]],
    [[70, 71], [72, 73, 74, 75, 76, 77], [78], [79, 80, 81]],
    [[90, 91, 92], [90, 91, 93]],
]
PAD = 1


@pytest.fixture(scope="module", params=["tiny_llama-sdpa", "tiny_llama-eager", "tiny_gpt2-sdpa", "tiny_gpt2-eager"])
def model(request):
    name, attention = request.param.split("-")
    return strong(request.getfixturevalue(name), attention)


def each_alone():
    """Prompt and reply of every sequence, in order."""
    return [(prompt, reply) for prompt, row in zip(PROMPTS, REPLIES, strict=True) for reply in row]


def plainly(model, prompt, reply):
    """Log-probabilities of a reply, and the hidden states before each of its tokens and after the last."""
    output = model(torch.tensor([[*prompt, *reply]]), output_hidden_states=True)
    log_probs = output.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, torch.tensor(reply)[:, None])[:, 0], output.hidden_states[-1][0, len(prompt) - 1 :]


@pytest.mark.parametrize(("widest", "rows"), [(None, 1), (9, 1), (8, 2), (6, 2), (5, 3), (0, 4)])
def test_as_many_replies_a_row_as_fit(widest, rows):
    """A prompt of two, replies of one, two, one and three."""
    replies = [[[5], [6, 7], [8], [9, 10, 11]]]
    folded = lay_out([[3, 4]], replies, PAD, widest)
    assert len(folded.ids_RL) == rows
    tokens = folded.ids_RL.flatten()
    assert [
        tokens[states[1:]][mask].tolist() for states, mask in zip(folded.states_BU, folded.mask_BT, strict=True)
    ] == replies[0]
    assert all(tokens[states[0]] == 4 for states in folded.states_BU)


@pytest.mark.parametrize("widest", [None, 0])
def test_a_fold_is_each_sequence_by_itself(model, widest):
    folded = lay_out(PROMPTS, REPLIES, PAD, widest)
    assert len(folded.ids_RL) == (10 if widest == 0 else 4)
    assert folded.shares is (widest is None)
    with torch.no_grad():
        log_probs, entropies = completion_log_probs(model, folded, 1.0, entropies=True)
        states = last_hidden(model.base_model, folded).flatten(0, 1)[folded.states_BU]
        for row, (prompt, reply) in enumerate(each_alone()):
            expected, hidden = plainly(model, prompt, reply)
            end = len(reply)
            torch.testing.assert_close(log_probs[row, :end], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(states[row, : end + 1], hidden, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(states[row, end:], states[row, end].expand_as(states[row, end:]))
            assert folded.mask_BT[row].tolist() == [True] * end + [False] * (6 - end)
    assert (log_probs[~folded.mask_BT] == 0).all()
    assert (entropies[~folded.mask_BT] == 0).all()


def test_gradients_of_a_fold_are_those_of_the_sequences(model):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    together, _ = completion_log_probs(model, lay_out(PROMPTS, REPLIES, PAD), 1.0)
    found = torch.autograd.grad(together.sum(), weights)
    expected = torch.autograd.grad(sum(plainly(model, *one)[0].sum() for one in each_alone()), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


def test_padding_and_companions_do_no_harm(model):
    with torch.no_grad():
        alone, _ = completion_log_probs(model, lay_out(PROMPTS[:1], REPLIES[:1], PAD), 1.0)
        for pad in (PAD, 99):
            companions = [[30] * 40, [31] * 3]
            folded = lay_out([PROMPTS[0], *companions], [REPLIES[0], [[5], [6], [7]], [[5], [6], [8] * 20]], pad)
            found, _ = completion_log_probs(model, folded, 1.0)
            assert found.isfinite().all()
            torch.testing.assert_close(found[:3, :5], alone, atol=1e-5, rtol=1e-5)


def test_temperature_and_entropy(model):
    """At a high temperature every token is as likely as any other; at a low one the likeliest is certain."""
    folded = lay_out(PROMPTS, REPLIES, PAD)
    uniform = torch.tensor(float(model.config.vocab_size)).log()
    with torch.no_grad():
        log_probs, entropies = completion_log_probs(model, folded, 1e6, entropies=True)
        torch.testing.assert_close(-log_probs[folded.mask_BT], uniform.expand(folded.mask_BT.sum()), atol=1e-4, rtol=0)
        torch.testing.assert_close(entropies[folded.mask_BT], -log_probs[folded.mask_BT], atol=1e-4, rtol=0)
        cold = completion_log_probs(model, folded, 1e-4, entropies=True)[1]
        assert cold[folded.mask_BT].abs().max() < 0.05
        prompt, reply = each_alone()[4]
        logits = model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
        found = completion_log_probs(model, folded, 0.7, entropies=True)[1][4, : len(reply)]
        expected = torch.distributions.Categorical(logits=logits / 0.7).entropy()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_head_runs_only_where_it_is_asked(model):
    ids, index = torch.tensor([PROMPTS[0], [60, 61, 62, 63]]), torch.tensor([6, 0, 3, 3])
    with torch.no_grad():
        full = model(ids).logits
        with head_at(model, index):
            some = model(ids).logits
        assert some.shape == (1, 4, full.shape[-1])
        torch.testing.assert_close(some[0], full.flatten(0, 1)[index], atol=1e-5, rtol=1e-5)
        assert torch.equal(model(ids).logits, full)  # the hook is gone


def test_what_else_a_backbone_puts_out_is_left_as_it_was():
    """The load-balancing loss of a mixture of experts counts every token, also where the head runs at some."""
    model = causal("mixtral").eval()
    ids = torch.tensor([PROMPTS[0], [40, 41, 42, 43]])
    with torch.no_grad():
        full = model(ids, output_router_logits=True, use_cache=True)
        with head_at(model, torch.tensor([6, 0])) as choice:
            some = model(ids, output_router_logits=True, use_cache=True)
    assert choice.made
    assert some.logits.shape[:2] == (1, 2)
    assert some.aux_loss == full.aux_loss
    assert some.past_key_values.get_seq_length() == 4
    assert all(map(torch.equal, some.router_logits, full.router_logits))


@pytest.mark.parametrize("widest", [None, 0])
@pytest.mark.parametrize("family", ["opt", "bart"])
def test_a_model_that_does_not_call_its_base_model(family, widest):
    """OPT's and BART's call the decoder within it, so that nothing can be chosen behind it."""
    sizes = {"vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 2}
    if family == "opt":
        config = OPTConfig(
            hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, **sizes
        )
    else:
        config = BartConfig(d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, **sizes,
                            is_decoder=True, is_encoder_decoder=False, decoder_start_token_id=2)  # fmt: skip
        if widest is None:
            pytest.skip("BART makes positions of its own, and is refused")
    model = strengthened(AutoModelForCausalLM.from_config(config).eval(), 4.0)
    with torch.no_grad(), head_at(model, torch.tensor([0])) as choice:
        model(torch.tensor(PROMPTS[:1]))
    assert not choice.made
    found, _ = completion_log_probs(model, lay_out(PROMPTS, REPLIES, PAD, widest), 1.0)
    for row, (prompt, reply) in enumerate(each_alone()):
        torch.testing.assert_close(found[row, : len(reply)], plainly(model, prompt, reply)[0], atol=1e-5, rtol=1e-5)


def test_padding_does_not_count_on_beyond_the_longest_sequence():
    """Positions end with the longest sequence's, which is all that a learned table need hold; not with the row."""
    prompts, replies = [[5] * 10, [6] * 10], [[[7] * 20, [8] * 20, [9] * 20], [[8] * 20]]
    folded = lay_out(prompts, replies, PAD)
    assert folded.ids_RL.shape == (2, 70)
    assert int(folded.positions_RL.max()) == 29
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=30, eos_token_id=2, bos_token_id=2)
    model = strengthened(AutoModelForCausalLM.from_config(config).eval())
    together, apart = (
        completion_log_probs(model, lay_out(prompts, replies, PAD, widest), 1.0)[0] for widest in (None, 0)
    )
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_a_token_that_is_ruled_out_leaves_the_entropy_finite(tiny_llama):
    model = strong(tiny_llama)
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: output.index_fill(-1, torch.tensor([2, 3]), float("-inf"))
    )
    entropies = completion_log_probs(model, lay_out(PROMPTS, REPLIES, PAD), 1.0, entropies=True)[1]
    assert entropies.isfinite().all()
    entropies.sum().backward()
    assert all(one.grad.isfinite().all() for one in model.parameters())


def test_layout_by_hand():
    folded = lay_out([[5, 6], [7]], [[[10, 11], [12]], [[13], [14]]], PAD)
    assert folded.ids_RL.tolist() == [[5, 6, 10, 11, 12], [7, 13, 14, 1, 1]]
    assert folded.positions_RL.tolist() == [[0, 1, 2, 3, 2], [0, 1, 1, 0, 0]]
    assert folded.segments_RL.tolist() == [[0, 0, 1, 1, 2], [0, 1, 2, -1, -1]]
    assert folded.states_BU.tolist() == [[1, 2, 3], [1, 4, 4], [5, 6, 6], [5, 7, 7]]
    assert folded.mask_BT.tolist() == [[True, True], [True, False], [True, False], [True, False]]


def test_mask_by_hand():
    """Prompt of two, replies of two and of one, one place of padding."""
    visible = visible_pairs(torch.tensor([[0, 0, 1, 1, 2, -1]]))
    assert visible.shape == (1, 1, 6, 6)
    assert visible[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_a_mask_is_given_only_where_prompts_are_shared():
    shared, apart = (lay_out(PROMPTS[:1], REPLIES[:1], PAD, widest) for widest in (None, 0))
    assert "attention_mask" not in apart.inputs("sdpa", torch.float32)
    assert shared.inputs("sdpa", torch.float32)["attention_mask"].dtype == torch.bool
    added = shared.inputs("eager", torch.bfloat16)["attention_mask"]
    assert added.dtype == torch.bfloat16
    assert sorted(added.unique().tolist()) == [torch.finfo(torch.bfloat16).min, 0]


def test_blocks_hide_what_the_mask_hides():
    """Two hundred tokens of a prompt, replies of ninety and of eighty: blocks of 128."""
    folded = lay_out([[5] * 200, [6]], [[[7] * 90, [8] * 80], [[9]]], PAD)
    blocks = block_mask(folded.segments_RL)
    seen = torch.zeros(2, 3, 3, dtype=torch.bool)
    for row, query, key in visible_pairs(folded.segments_RL)[:, 0].nonzero().tolist():
        seen[row, query // 128, key // 128] = True
    assert torch.equal(blocks.to_dense()[:, 0].bool(), seen)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention is compiled")
def test_flex_attention(tiny_llama):
    folded = lay_out(PROMPTS, REPLIES, PAD)
    with torch.no_grad():
        found, expected = (
            completion_log_probs(strong(tiny_llama, kind), folded, 1.0)[0] for kind in ("flex_attention", "sdpa")
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        lay_out([[5], []], [[[1]], [[2]]], PAD)
