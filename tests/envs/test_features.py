"""A model's mean hidden state."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.envs import model_features
from tests.support.models import save_classifier


def mean_state(model, ids, states):
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return hidden[states][-1][0].mean(0).numpy()


def test_of_an_encoder_under_its_head(tiny_bert, tmp_path):
    folder = save_classifier(tiny_bert, tmp_path / "classifier", ("a", "b"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    wanted = mean_state(model, tokenizer("send the lamp")["input_ids"], "hidden_states")
    for source in ((model, tokenizer), open_model(ModelConfig(name_or_path=str(folder), adapter=None))):
        vector = model_features(source)("send the lamp")
        assert vector.shape == (32,)
        assert np.allclose(vector, wanted, atol=1e-6)


def test_of_a_decoder_whose_long_texts_are_cut(tiny_llama):
    opened = open_model(ModelConfig(name_or_path=str(tiny_llama), adapter=None))
    features = model_features(opened)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama).eval(), opened.tokenizer
    ids = tokenizer("lamp " * 400)["input_ids"]
    assert len(ids) > 256
    assert np.allclose(features("lamp " * 400), mean_state(model, ids[:256], "hidden_states"), atol=1e-5)
    assert features("").tolist() == [0.0] * 32


@pytest.mark.parametrize("training", [True, False])
def test_of_the_encoder_of_an_encoder_decoder(tiny_tokenizer, training, tmp_path):
    set_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=len(tiny_tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                 pad_token_id=tiny_tokenizer.pad_token_id, decoder_start_token_id=tiny_tokenizer.pad_token_id)
    ).train(training)  # fmt: skip
    features = model_features((model, tiny_tokenizer))
    wanted = mean_state(model.get_encoder().eval(), tiny_tokenizer("lamp")["input_ids"], "hidden_states")
    assert np.allclose(features("lamp"), wanted, atol=1e-6)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    opened = model_features(open_model(ModelConfig(name_or_path=str(tmp_path), adapter=None)))
    assert np.allclose(opened("lamp"), wanted, atol=1e-6)


def test_of_a_model_for_spans(tiny_bert, tmp_path):
    set_seed(0)
    model, tokenizer = (
        AutoModelForQuestionAnswering.from_pretrained(tiny_bert),
        AutoTokenizer.from_pretrained(tiny_bert),
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    features = model_features(open_model(ModelConfig(name_or_path=str(tmp_path), adapter=None)))
    wanted = mean_state(model.eval(), tokenizer("lamp")["input_ids"], "hidden_states")
    assert np.allclose(features("lamp"), wanted, atol=1e-6)
