"""Classifiers as policies: probabilities of hand-made logits, the classes of data, and the supervised loss."""

import base64
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessorPil

from rlhf.errors import UserError
from rlhf.models.labels import Classes
from rlhf.models.roles import Roles
from rlhf.models.tasks import IMAGE_LABEL, task_of
from rlhf.policies.label import LabelKind, LabelPolicy, LabelRow, balanced_weights, class_loss, share_right
from rlhf.policies.readers import ImageReader, TextReader


class Fixed(nn.Module):
    """Logits by the first token of a text."""

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(logits))
        self.config = type("Config", (), {"model_type": "bert", "architectures": None})()
        self.dtype = torch.float32

    @property
    def device(self):
        return self.table.device

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"logits": self.table[input_ids[:, 0]]})()


class Padding:
    def pad(self, batch, return_tensors):
        width = max(map(len, batch["input_ids"]))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch["input_ids"]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


LOGITS = [[math.log(0.7), math.log(0.2), math.log(0.1)], [0.0, 0.0, 0.0]]


def policy(several=False, temperature=1.0, reference=None) -> LabelPolicy:
    roles = Roles(Fixed(LOGITS), reference=None if reference is None else Fixed(reference))
    reader = TextReader(Padding(), roles.config)
    return LabelPolicy(roles, reader, Classes(["a", "b", "c"], several), temperature, 8)


ROWS = [LabelRow([0, 5], "x", {}), LabelRow([1], "y", {})]


def test_an_answer_has_the_log_probability_of_its_class():
    each = policy().sample(ROWS, [[1, 2, 3], [4, 5, 6]])
    for group, chances in zip(each, ([0.7, 0.2, 0.1], [1 / 3] * 3), strict=True):
        for completion in group:
            assert completion.log_probs == pytest.approx([math.log(chances[completion.ids[0]])])
            assert completion.text == "abc"[completion.ids[0]]
            assert completion.finished
    assert each[1][0].entropies == pytest.approx([math.log(3)])
    assert each[0][0].entropies == pytest.approx([0.8018], abs=1e-4)  # −0.7 ln 0.7 − 0.2 ln 0.2 − 0.1 ln 0.1


def test_answers_come_as_often_as_they_are_likely():
    drawn = policy().sample(ROWS[:1], [range(3000)])[0]
    share = [sum(completion.ids == [number] for completion in drawn) / 3000 for number in range(3)]
    assert share == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_the_likeliest_answer_at_temperature_0():
    (first,), _ = policy(temperature=0.0).sample(ROWS, [[0], [0]])
    assert (first.text, first.log_probs) == ("a", pytest.approx([math.log(0.7)]))


def test_every_action_has_its_probability():
    first, _ = policy().every_action(ROWS)
    assert [completion.text for completion in first] == ["a", "b", "c"]
    assert [math.exp(completion.log_probs[0]) for completion in first] == pytest.approx([0.7, 0.2, 0.1])
    assert policy(several=True).action_count is None


def test_several_classes_are_independent_answers():
    each = policy(several=True)
    chances = [0.7 / 1.7, 0.2 / 1.2, 0.1 / 1.1]  # sigmoid of log odds
    (drawn,) = each.sample(ROWS[:1], [range(2000)])
    shares = [sum(completion.ids[number] for completion in drawn) / 2000 for number in range(3)]
    assert shares == pytest.approx(chances, abs=0.04)
    both = next(completion for completion in drawn if completion.ids == [1, 1, 0])
    assert both.text == "a, b"
    expected = [math.log(chances[0]), math.log(chances[1]), math.log(1 - chances[2])]
    assert both.log_probs == pytest.approx(expected)


def test_kl_is_that_of_the_whole_distribution():
    each = policy(reference=[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    packed = each.pack(ROWS, each.sample(ROWS, [[0], [0]]))
    assert each.kl(packed).tolist() == pytest.approx([math.log(3) - 0.8018, 0.0], abs=1e-4)


def test_a_rare_class_weighs_as_much_as_a_frequent_one():
    weights = balanced_weights([0, 0, 0, 2], 3)
    assert weights.tolist() == pytest.approx([4 / 9, 0.0, 4 / 3])
    with torch.device("meta"):  # as where a trainer is tried without weights
        assert balanced_weights([0, 1], 2).tolist() == [1.0, 1.0]


def test_the_loss_is_cross_entropy_over_its_denominator():
    logits = torch.tensor(LOGITS)
    labels = torch.tensor([0, 2])
    assert class_loss(logits, labels).item() == pytest.approx((-math.log(0.7) + math.log(3)) / 2)
    assert class_loss(logits, labels, denominator=4).item() == pytest.approx((-math.log(0.7) + math.log(3)) / 4)
    weighted = class_loss(logits, labels, torch.tensor([2.0, 1.0, 0.5]))
    assert weighted.item() == pytest.approx((-2 * math.log(0.7) + 0.5 * math.log(3)) / 2)
    smoothed = class_loss(logits[:1], labels[:1], smoothing=0.3)
    expected = -0.8 * math.log(0.7) - 0.1 * math.log(0.2) - 0.1 * math.log(0.1)
    assert smoothed.item() == pytest.approx(expected)


def test_several_classes_have_a_sigmoid_each():
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    assert class_loss(logits, labels).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_share_right():
    prediction = type("Prediction", (), {"predictions": [[2.0, 1.0], [0.0, 1.0]], "label_ids": [0, 0]})
    assert share_right(prediction) == {"accuracy": 0.5}
    several = type("Prediction", (), {"predictions": [[2.0, -1.0]], "label_ids": [[1.0, 1.0]]})
    assert share_right(several) == {"accuracy": 0.5}


@pytest.mark.parametrize("several", [False, True])
def test_demonstrations_teach_nothing_about_an_extra_answer(several):
    """Its output has no part in the loss, and so no gradient."""
    model, args = with_extra_answer(several, bias=True)
    loss = LabelKind(None).supervised(model, None, args).loss
    logits = torch.zeros(2, 4, requires_grad=True)
    labels = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 1.0, 0]]) if several else torch.tensor([0, 2])
    loss(type("Output", (), {"logits": logits})(), labels).backward()
    assert logits.grad[:, 3].tolist() == [0.0, 0.0]
    assert logits.grad[:, :3].abs().min() > 0


def with_extra_answer(several, bias):
    """A head with an output for an answer that is no class, and the settings of its training."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 4, bias=bias))
    model.config = SimpleNamespace(num_labels=4)
    Classes(["a", "b", "c", "hand_over"], several).name(model)
    answers = {"hand_over": 0.1}
    return model, SimpleNamespace(class_weights=None, extra_answers=answers, augment=None, label_smoothing_factor=0.1)


def test_an_extra_answer_needs_a_head_with_a_bias():
    model, args = with_extra_answer(several=False, bias=False)
    kind = LabelKind(SimpleNamespace(name="gpt2"))
    with pytest.raises(UserError, match=r"extra_answers: .*gpt2.* no bias"):
        kind.supervised(model, None, args)


def test_classes_of_the_data_come_before_extra_answers():
    data = type("Data", (), {"train": {"classes": [["b"], ["a"]]}, "eval": {"classes": [["c"]]}})
    args = type("Args", (), {"extra_answers": {"hand_over": 0.1}})
    assert LabelKind(None).classes(data, args) == Classes(["a", "b", "c", "hand_over"], False)
    for wrong in ({"a": 0.1}, {"hand_over": 2}, {"hand_over": "often"}):
        args.extra_answers = wrong
        with pytest.raises(UserError, match="extra_answers"):
            LabelKind(None).classes(data, args)


# images

TINY = {
    "vit": {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}  # fmt: skip


def processor(channels=1):
    return ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * channels, image_std=[0.5] * channels)


@pytest.fixture
def pictures(tmp_path):
    """Rows of six grey pictures of two sizes."""
    random = np.random.default_rng(0)
    for number in range(6):
        pixels = random.integers(0, 256, (8 + number % 2, 8), np.uint8)
        pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [LabelRow(str(tmp_path / f"{number}.png"), f"{number}.png", {}) for number in range(6)]


@pytest.fixture(params=TINY)
def images(request):
    """A policy of images with a critic, in training, whose batch normalisation has seen other images."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, num_channels=1, num_labels=3, **TINY[request.param])
    assert task_of(config) is IMAGE_LABEL
    models = [AutoModelForImageClassification.from_config(config) for _ in range(3)]
    for parameter in models[0].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    models[0].train()(torch.randn(16, 1, 8, 8))
    roles = Roles(models[0], nn.Linear(16, 1), models[1].base_model, models[2])
    return LabelPolicy(roles, ImageReader(processor(), config), Classes(["a", "b", "c"]), 1.0, 4).train()


def test_an_image_alone_is_what_it_is_in_a_batch(images, pictures):
    completions = images.sample(pictures, [[number] for number in range(6)])
    with torch.no_grad():
        packed = images.pack(pictures, completions)
        whole = images.log_probs(packed)[0], images.reference_log_probs(packed), images.values(packed)
        for place, (row, group) in enumerate(zip(pictures, completions, strict=True)):
            alone = images.pack([row], [group])
            parts = images.log_probs(alone)[0], images.reference_log_probs(alone), images.values(alone)
            for of_all, of_one in zip(whole, parts, strict=True):
                torch.testing.assert_close(of_one[0], of_all[place], atol=1e-5, rtol=1e-4)


def test_the_first_ratio_of_images_is_one_and_no_statistics_move(images, pictures):
    before = {name: buffer.clone() for name, buffer in images.named_buffers()}
    completions = images.sample(pictures, [[number] for number in range(6)])
    log_probs_BT = images("policy", images.pack(pictures, completions)).log_probs_BT
    sampled = torch.tensor([completion.log_probs for (completion,) in completions])
    torch.testing.assert_close(log_probs_BT, sampled, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(buffer, before[name]) for name, buffer in images.named_buffers())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (1, "RGB"), (3, "RGBA"), (3, "P"), (1, "I;16")])
def test_an_image_has_the_channels_that_the_model_reads(channels, mode):
    values = np.arange(64).reshape(8, 8)
    picture = pillow.fromarray((values * 1024).astype(np.uint16) if mode == "I;16" else (values * 4).astype(np.uint8))
    content = io.BytesIO()
    (picture if mode == "I;16" else picture.convert(mode)).save(content, "PNG")
    ref = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    config = AutoConfig.for_model("vit", num_channels=channels, image_size=8)
    (pixels_CHW,) = ImageReader(processor(channels), config).batch([ref])["pixel_values"]
    expected_HW = torch.tensor(values * 4 / 127.5 - 1).float()
    torch.testing.assert_close(pixels_CHW, expected_HW.expand(channels, 8, 8), atol=1e-2, rtol=0)
