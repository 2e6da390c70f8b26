import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.load import load_policy, source_of
from rlhf.models.tokenizer import load_tokenizer
from tests.support.models import strengthened
from tests.support.runs import SEQUENCES, add_stage


def loaded(folder):
    config = ModelConfig(name_or_path=str(folder))
    return load_policy(source_of(config), config, load_tokenizer(config))


class FakeModel(torch.nn.Module):
    """A model whose outputs are given: one sequence, one logit each."""

    def __init__(self, *values, dtype=torch.float32):
        super().__init__()
        self.weight, self.values = torch.nn.Parameter(torch.zeros(1, dtype=dtype)), torch.tensor([values])

    def forward(self, input_ids, attention_mask):
        class Output:
            logits = self.values

        return Output


@pytest.mark.parametrize(
    ("dtype", "was", "now", "same"),
    [
        ("float32", 0.5, 0.5009, True),  # a thousandth of a logit
        ("float32", 0.5, 0.502, False),
        ("float32", -500.0, -500.04, True),  # a ten-thousandth of a long sequence's log-probability
        ("float32", -500.0, -500.1, False),
        ("bfloat16", 0.5, 0.59, True),
        ("bfloat16", 0.5, 0.61, False),
        ("bfloat16", -500.0, -509.0, True),
        ("bfloat16", -500.0, -511.0, False),
        ("float16", 0.5, 0.56, False),
        ("float32", 0.5, float("nan"), False),
    ],
)
def test_what_is_taken_for_the_same(dtype, was, now, same):
    made = {"ids": [[1, 2]], "outputs": [was], "dtype": dtype}
    if same:
        probe.check(FakeModel(now), made, "run/sft")
    else:
        with pytest.raises(UserError, match=rf"^run/sft: loaded, .* {now:.4f}; saved, it scored {was:.4f}: "):
            probe.check(FakeModel(now), made, "run/sft")


def test_the_types_are_named_where_they_differ():
    made = {"ids": [[1, 2]], "outputs": [1.0], "dtype": "float32"}
    with pytest.raises(UserError, match="its weights were float32 and are bfloat16 now, or its base model is not"):
        probe.check(FakeModel(2.0, dtype=torch.bfloat16), made, "x")
    with pytest.raises(UserError, match=r"scored 1\.0000: its base model is not the one it was trained on"):
        probe.check(FakeModel(2.0), made, "x")


def test_a_head_of_another_size_is_one_line():
    with pytest.raises(UserError, match="the model has 2 outputs; saved, it had 1"):
        probe.check(FakeModel(1.0, 2.0), {"ids": [[1, 2]], "outputs": [1.0], "dtype": "float32"}, "x")


def test_what_training_adds_to_the_forward_pass_is_left_out(tiny_llama):
    """Accelerate wraps it in autocast for good; the artefact is loaded without."""
    model = strengthened(loaded(tiny_llama), 4.0)
    plain = probe.outputs(model, SEQUENCES)
    model._original_forward = model.forward
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    assert probe.outputs(model, SEQUENCES) == plain
    del model._original_forward
    assert probe.outputs(model, SEQUENCES) != pytest.approx(plain, rel=1e-4)


def test_a_head_may_be_lost_by_no_name(tiny_llama, tiny_bert, tmp_path):
    """Whatever it is called; a policy has none to lose."""
    for number, base in enumerate((tiny_llama, tiny_bert)):
        fields = {"modules_to_save": ["pooler", "classifier"]} if base == tiny_bert else True
        add_stage(tmp_path, f"reward{number}", base, labels=1, adapter=fields)
        folder = tmp_path / f"reward{number}"
        probe.check_head(folder)
        weights = folder / "adapter_model.safetensors"
        kept = load_file(weights)
        whole = [name for name in kept if ".lora_" not in name and name.endswith("weight")]
        save_file({**kept, whole[-1]: torch.zeros_like(kept[whole[-1]])}, weights)
        with pytest.raises(UserError, match=f"{whole[-1]} is all zero"):
            probe.check_head(folder)
        save_file({name: tensor for name, tensor in kept.items() if ".lora_" in name}, weights)
        with pytest.raises(UserError, match="the head of the model is not in it"):
            probe.check_head(folder)
    add_stage(tmp_path, "sft", tiny_llama)
    probe.check_head(tmp_path / "sft")
