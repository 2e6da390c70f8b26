import pytest
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from rlhf.errors import UserError
from rlhf.models.freeze import freeze_parameters


def tiny() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=12, num_attention_heads=2, num_labels=2
        )
    )


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_pattern_is_a_part_between_dots():
    model = tiny()
    freeze_parameters(model, ["embeddings", "encoder.layer.[0-3]"])
    names = trained(model)
    assert not any("embeddings" in name for name in names)
    assert {name.split(".")[3] for name in names if "encoder.layer" in name} == {str(n) for n in range(4, 12)}
    assert any(name.startswith("classifier") for name in names)


@pytest.mark.parametrize("pattern", ["layers.0", "[", "bert|classifier"])
def test_what_cannot_be_meant_is_refused(pattern):
    with pytest.raises(UserError):
        freeze_parameters(tiny(), [pattern])
