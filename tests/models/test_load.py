import pytest
import torch
from peft import PeftModel, TaskType
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.adapters import attach, lora_config
from rlhf.models.heads import init_score_head, score_head
from rlhf.models.load import check_weights, context_length, load_policy, load_scorer, source_of
from rlhf.models.tasks import LABEL, is_encoder
from rlhf.models.tokenizer import load_tokenizer

IDS = [[5, 9, 30, 31], [8, 12, 44]]


def loaded(folder, load=load_policy, **options):
    config = ModelConfig(name_or_path=str(folder))
    return load(source_of(config), config, load_tokenizer(config), **options)


@pytest.mark.parametrize(
    ("fixture", "encoder", "length"), [("tiny_llama", False, 256), ("tiny_gpt2", False, 256), ("tiny_bert", True, 128)]
)
def test_what_a_model_is(fixture, encoder, length, request):
    config = AutoConfig.from_pretrained(request.getfixturevalue(fixture))
    assert is_encoder(config) == encoder
    assert context_length(config) == length


def test_real_small_models_load(real):
    stories = loaded(real / "models/stories260K")
    assert stories.generation_config.eos_token_id == [1, 2]
    atome = ModelConfig(name_or_path=str(real / "models/atome-vanilla-1M"), eos_token="Ā")
    tokenizer = load_tokenizer(atome)
    plain = AutoModelForCausalLM.from_pretrained(atome.name_or_path)
    model = load_policy(source_of(atome), atome, tokenizer)
    assert model.get_input_embeddings().num_embeddings == 257, "a row for the added pad"
    with torch.no_grad():
        ids = torch.tensor([[72, 101, 108, 108, 111]])
        torch.testing.assert_close(model(ids).logits[..., :256], plain(ids).logits)
    again = load_policy(source_of(atome), atome, tokenizer)
    assert probe.outputs(model, IDS) == probe.outputs(again, IDS), "the added row is the same each time"


def test_a_head_is_made_only_when_asked(tiny_llama, tiny_bert):
    for folder in (tiny_llama, tiny_bert):
        with pytest.raises(UserError, match="has no reward head with 1 output"):
            loaded(folder, load_scorer)
    assert loaded(tiny_llama, load_scorer, new_head=True).fresh == ("score",)
    assert set(loaded(tiny_bert, load_scorer, new_head=True).fresh) == {"pooler", "classifier"}


def test_a_new_head_has_the_spread_that_the_literature_gives():
    config = AutoConfig.for_model("llama", hidden_size=4096, intermediate_size=8, num_hidden_layers=1, vocab_size=8)
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    init_score_head(model)
    weight = score_head(model).weight
    assert weight.shape == (1, 4096)
    assert weight.std().item() == pytest.approx(1 / 4097**0.5, rel=0.05)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_an_encoders_adapter_keeps_every_new_layer(tiny_bert, tmp_path):
    """BERT's pooler is in no masked-language-model checkpoint: saved with the head, or drawn anew at every load."""
    from rlhf.training.starting_point import StartingPoint, adapted

    config = ModelConfig(name_or_path=str(tiny_bert), adapter={"r": 4})
    opened = open_model(config)
    scorer = load_scorer(opened.source, config, opened.tokenizer, new_head=True)

    class FakeArgs:
        seed = 0

    model = adapted(scorer.model, StartingPoint(opened, LABEL, True, 128), FakeArgs, scorer.fresh)
    model.save_pretrained(tmp_path / "reward")
    opened.tokenizer.save_pretrained(tmp_path / "reward")
    before = probe.outputs(model, IDS)
    for _ in range(2):
        assert probe.outputs(loaded(tmp_path / "reward", load_scorer).model, IDS) == pytest.approx(before, abs=1e-5)


def test_a_probe_notices_another_base(tiny_llama, tiny_gpt2):
    model = loaded(tiny_llama)
    made = probe.make(model, IDS)
    probe.check(model, made, "run/sft")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(
        UserError, match=r"run/sft: loaded, the model scores its probe sequence -?\d+\.\d+; saved, it scored"
    ):
        probe.check(model, made, "run/sft")


def test_a_probe_is_the_log_probability(tiny_llama):
    model = loaded(tiny_llama)
    with torch.no_grad():
        logits = model(torch.tensor([IDS[1]])).logits.log_softmax(-1)[0]
    by_hand = sum(logits[place, token].item() for place, token in enumerate(IDS[1][1:]))
    assert probe.outputs(model, [IDS[1]]) == pytest.approx([by_hand], rel=1e-5)


def test_an_adapters_base_is_named_by_itself(tiny_llama, tmp_path):
    source = source_of(ModelConfig(name_or_path=str(tiny_llama), revision="v1"))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    attach(model, lora_config({"r": 2}, TaskType.CAUSAL_LM, joined=False), source).save_pretrained(tmp_path / "a")
    source = source_of(ModelConfig(name_or_path="elsewhere"), tmp_path / "a")
    assert (source.base, source.revision, source.adapter) == (str(tiny_llama), "v1", tmp_path / "a")
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "a")


def test_an_unknown_model_is_one_line():
    with pytest.raises(UserError) as error:
        loaded("nobody/no-such-model")
    assert "nobody/no-such-model" in str(error.value)
    assert "\n" not in str(error.value)


def test_tokenizers_of_the_fixtures_are_sound(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def lost(weights):
    del weights[next(name for name in weights if "layers.1" in name and "lora_B" in name)]


def spare(weights):
    name = next(name for name in weights if "layers.1" in name and "lora_B" in name)
    weights[name.replace("layers.1", "layers.7")] = weights[name].clone()


def reshaped(weights):
    name = next(name for name in weights if "layers.1" in name and "lora_B" in name)
    weights[name] = torch.zeros(3, 2)


def nan(weights):
    weights[next(name for name in weights if "lora_B" in name)][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [(lost, r"lacks 1 of the \d+ tensors"), (spare, r"has 1 tensors"), (reshaped, "size mismatch"), (nan, "NaN")],
)
def test_an_adapter_that_does_not_fit_its_base_is_refused(tiny_llama, tmp_path, change, said):
    adapter = tmp_path / "a"
    source = source_of(ModelConfig(name_or_path=str(tiny_llama)))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    attach(model, lora_config({"r": 2}, TaskType.CAUSAL_LM, joined=False), source).save_pretrained(adapter)
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tiny_llama)))
    config = ModelConfig(name_or_path=str(adapter))
    assert load_policy(source_of(config), config, tokenizer)
    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=said) as error:
        load_policy(source_of(config), config, tokenizer)
    assert str(adapter) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"r": 2}', "version https://git-lfs.github.com/spec/v1"])
def test_a_damaged_adapter_config_is_one_line(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json") as error:
        source_of(ModelConfig(name_or_path=str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_atention"])
def test_an_attention_that_is_not_there_is_named(tiny_llama, attention):
    config = ModelConfig(name_or_path=str(tiny_llama), attn_implementation=attention)
    with pytest.raises(UserError, match=f"attn_implementation: {attention}") as error:
        check_weights(source_of(config), config)
    assert "\n" not in str(error.value)
