"""What vLLM is handed: a stand-in engine loads it as vLLM would, and must find the policy. vLLM itself needs a GPU."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.errors import UserError
from rlhf.policies.vllm import VllmSampler, _rank
from rlhf.prefix_sharing.head import completion_log_probs
from rlhf.prefix_sharing.layout import lay_out
from tests.support.ppo import make_roles


class FakeEngine:
    """Replies with tokens 5, 6 and the stop token, and says how likely they are under what it was given."""

    def __init__(self, **options) -> None:
        self.options, self.calls = options, []
        self.model = AutoModelForCausalLM.from_pretrained(options["model"])
        loaded = SimpleNamespace(load_weights=lambda rows: self.model.load_state_dict(dict(rows)))
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=loaded))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def generate(self, prompts, parameters, lora_request, use_tqdm):
        model = self.model
        if lora_request is not None:
            self.calls.append(lora_request)
            fresh = AutoModelForCausalLM.from_pretrained(self.options["model"])
            model = PeftModel.from_pretrained(fresh, lora_request.path)
        pairs = zip(prompts, parameters, strict=True)
        return [self._output(model, prompt["prompt_token_ids"], one) for prompt, one in pairs]

    @torch.no_grad()
    def _output(self, model, prompt, parameters):
        ids = [5, 6, parameters.stop_token_ids[0]]
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / parameters.temperature
        values = logits.log_softmax(-1)[torch.arange(3), torch.tensor(ids)].tolist()
        results = [{token: SimpleNamespace(logprob=value)} for token, value in zip(ids, values, strict=True)]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=results)])


@pytest.fixture
def vllm(monkeypatch):
    module, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    module.LLM, module.SamplingParams = FakeEngine, lambda **options: SimpleNamespace(**options)
    request.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    for one in (module, lora, request):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    monkeypatch.setattr("rlhf.policies.vllm.device", lambda: torch.device("cuda"))


@pytest.mark.parametrize("adapter", [True, False])
def test_the_engine_gets_the_policy_after_every_update(vllm, tiny_llama, adapter):
    roles = make_roles(tiny_llama, adapter)
    sampler = VllmSampler(roles, AutoTokenizer.from_pretrained(tiny_llama), [2], 8, 64, 0.7, 0.3)
    prompts, seeds = [[7, 8, 9], [11]], [[1, 2], [3, 4]]
    for update in (1, 2):
        with torch.no_grad():
            for name, one in roles.named_parameters():
                if "lora_B.default" in name or (not adapter and name.startswith("policy")):
                    one.add_(0.05 * torch.randn_like(one))
        results = sampler(prompts, seeds)
        folded = lay_out(prompts, [[one.ids for one in row] for row in results], pad=1)
        with torch.no_grad(), roles.policy_model() as model:
            wanted, _ = completion_log_probs(model, folded, 0.7)
        said = torch.tensor([one.log_probs for row in results for one in row])
        assert said == pytest.approx(wanted, abs=1e-5)
        assert all(one.finished for row in results for one in row)
        if adapter:
            assert sampler.engine.calls[-1].number == update
    assert sampler.engine.options.get("enable_lora", False) == adapter


@pytest.mark.parametrize(("rank", "pattern", "room"), [
    (4, {}, 8), (8, {}, 8), (12, {}, 16), (24, {}, 32), (48, {}, 64), (8, {"q_proj": 24}, 32), (300, {}, 320),
])  # fmt: skip
def test_ranks_that_vllm_has(rank, pattern, room):
    assert _rank(LoraConfig(r=rank, rank_pattern=pattern)) == room


def test_a_rank_above_all_is_refused():
    with pytest.raises(UserError, match="up to rank 512, not 600"):
        _rank(LoraConfig(r=600))


def test_without_vllm_or_a_gpu_it_is_refused(monkeypatch, tiny_llama, request):
    roles, tokenizer = make_roles(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="vllm is not installed"):
        VllmSampler(roles, tokenizer, [2], 8, 64, 1.0, 0.3)
    request.getfixturevalue("vllm")
    monkeypatch.setattr("rlhf.policies.vllm.device", lambda: torch.device("cpu"))
    with pytest.raises(UserError, match="vllm needs a GPU"):
        VllmSampler(roles, tokenizer, [2], 8, 64, 1.0, 0.3)
