import pytest
import torch

from rlhf.errors import UserError
from rlhf.policies.sampler import Batching
from rlhf.policies.sampling_check import batching_of
from tests.support.architectures import built
from tests.support.models import strengthened


@pytest.mark.parametrize(("name", "expected"), [
    ("llama", Batching.MIXED), ("qwen3_5", Batching.MIXED), ("falcon_h1", Batching.MIXED), ("mamba", Batching.MIXED),
    ("bart", Batching.EQUAL),  # its positions count padding
    ("minimax", Batching.WHOLE),  # its cache is of its own kind
    ("recurrent_gemma", Batching.WHOLE),  # its states stand in its layers
])  # fmt: skip
def test_how_a_model_is_sampled(name, expected):
    model = strengthened(built(name), 4.0).train()
    state = torch.get_rng_state()
    assert batching_of(model) is expected
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn in training is what it would have been


@pytest.mark.parametrize("factor", [1.0, 4.0, 12.0])
@pytest.mark.parametrize(("name", "expected"), [("llama", Batching.MIXED), ("bart", Batching.EQUAL)])
def test_how_a_model_in_low_precision_is_sampled(name, expected, factor):
    assert batching_of(strengthened(built(name), factor).bfloat16()) is expected


def test_a_model_without_a_cache_is_refused_by_name():
    with pytest.raises(UserError, match="OpenAIGPTLMHeadModel cannot be sampled"):
        batching_of(strengthened(built("openai-gpt"), 4.0))
