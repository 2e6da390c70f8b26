import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.data.records import Demonstration, Labelled, Prompt, Spanned, Unusable, as_role
from rlhf.data.windows import Window
from rlhf.errors import UserError
from rlhf.policies.base import PackedActions
from rlhf.policies.completion import Completion
from rlhf.policies.kinds import policy_kind
from rlhf.policies.span import SpanRow, likeliest_starts, share_right, span_logits, span_loss
from rlhf.trl_trainers.sft import SFTSettings
from tests.support.spans import make_policy, make_roles, questions, records, span_rows

INF = math.inf


def packed(cells, nones, stops, actions) -> PackedActions:
    inputs = {name: torch.tensor(rows) for name, rows in (("cell_PV", cells), ("none_PV", nones), ("stop_PV", stops))}
    actions_BT = torch.tensor(actions)
    input_B = torch.zeros(len(actions), dtype=torch.long)
    return PackedActions(inputs, input_B, actions_BT, torch.ones_like(actions_BT, dtype=torch.bool))


def test_starts_are_odds_against_no_answer_and_ends_follow_the_start():
    # one window: CLS at 0, a question at 1, three tokens of the context at 2, 3, 4
    outputs_F2 = torch.tensor([[1.0, 0.5], [9.0, 9.0], [2.0, 3.0], [0.0, 4.0], [5.0, 6.0]])
    rows = packed([[0, 2, 3, 4]], [[0, 0, 0, 0]], [[1, 4, 4, 4]], [[0, 0], [1, 1], [2, 2], [3, 3]])
    logits = span_logits(outputs_F2, rows, longest=2).tolist()
    assert [row[0] for row in logits] == [[0.0, 1.0, -1.0, 4.0]] * 4
    assert [row[1] for row in logits] == [
        [0.5, -INF, -INF, -INF],
        [-INF, 3.0, 4.0, -INF],
        [-INF, -INF, 4.0, 6.0],
        [-INF, -INF, -INF, 6.0],
    ]


def test_with_one_window_starts_are_the_softmax_over_cls_and_context():
    outputs_F2 = torch.tensor([[1.0, 0.5], [9.0, 9.0], [2.0, 3.0], [0.0, 4.0], [5.0, 6.0]])
    rows = packed([[0, 2, 3, 4]], [[0, 0, 0, 0]], [[1, 4, 4, 4]], [[0, 0]])
    ours = span_logits(outputs_F2, rows, 4)[0, 0].softmax(-1)
    assert torch.allclose(ours, outputs_F2[[0, 2, 3, 4], 0].softmax(-1))


def test_with_several_windows_starts_are_those_of_independent_windows_of_which_at_most_one_answers():
    # two windows of CLS and two tokens each
    starts_F = torch.tensor([0.3, 1.0, -0.5, 2.0, 0.7, 1.1])
    outputs_F2 = torch.stack([starts_F, torch.zeros(6)], -1)
    rows = packed([[0, 1, 2, 4, 5]], [[0, 0, 0, 3, 3]], [[1, 3, 3, 5, 5]], [[0, 0]])
    ours = span_logits(outputs_F2, rows, 4)[0, 0].softmax(-1)
    first, second = starts_F[:3].softmax(-1), starts_F[3:].softmax(-1)
    joint = {(i, j): first[i] * second[j] for i, j in itertools.product(range(3), range(3)) if 0 in (i, j)}
    wanted = torch.stack([joint[0, 0], joint[1, 0], joint[2, 0], joint[0, 1], joint[0, 2]])
    assert torch.allclose(ours, wanted / wanted.sum())


def test_the_likeliest_answer_is_the_best_pair_and_not_the_best_start():
    # the start at 1 is likelier, but its mass is spread over two ends; 3 has one
    outputs_F2 = torch.tensor([[-9.0, 0.0], [2.0, 0.0], [-9.0, 0.0], [1.8, 0.0]])
    rows = packed([[0, 1, 2, 3]], [[0, 0, 0, 0]], [[1, 3, 3, 4]], [[0, 0], [1, 1]])
    assert likeliest_starts(outputs_F2, rows, 2).tolist() == [3, 3]


@pytest.mark.parametrize("length", [None, 17])
def test_an_answer_is_a_span_of_the_context(tiny_bert, length):
    rows = span_rows(tiny_bert, questions(10), length)
    assert (length is None) == all(len(row.windows) == 1 for row in rows)
    policy = make_policy(tiny_bert)
    answers = policy.sample(rows, [list(range(30))] * len(rows))
    lengths = Counter()
    for row, group in zip(rows, answers, strict=True):
        for answer in group:
            start, end = answer.ids
            lengths[0 if start == 0 else end - start + 1] += 1
            assert answer.text in row.context
            assert (answer.text == "") == (start == 0)
            assert 0 <= start <= end <= len(row.offsets)
    assert {0, 1, 2, 3} <= set(lengths) <= set(range(7))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("length", [None, 17])
def test_samples_have_the_log_probs_and_entropies_of_a_forward_pass(tiny_bert, length, temperature):
    rows = span_rows(tiny_bert, questions(8), length)
    policy = make_policy(tiny_bert, temperature=temperature)
    groups = policy.sample(rows, [[7, 8, 9]] * len(rows))
    log_probs_BT, entropies_BT = policy.log_probs(policy.pack(rows, groups), entropies=True)
    answers = [answer for group in groups for answer in group]
    assert torch.allclose(log_probs_BT, torch.tensor([answer.log_probs for answer in answers]), atol=1e-4)
    assert torch.allclose(entropies_BT, torch.tensor([answer.entropies for answer in answers]), atol=1e-4)
    assert torch.allclose(policy.reference_log_probs(policy.pack(rows, groups)), log_probs_BT, atol=1e-4)


def test_the_probabilities_of_all_answers_sum_to_one(tiny_bert):
    (row,) = span_rows(tiny_bert, questions(2)[1:], 16)
    assert len(row.windows) > 1
    policy = make_policy(tiny_bert)
    count = len(row.offsets)
    every = [(0, 0)] + [(i, j) for i in range(1, count + 1) for j in range(i, count + 1)]
    group = [Completion(list(pair), True) for pair in every]
    total = policy.log_probs(policy.pack([row], [group]))[0].sum(1).exp()
    assert total.sum().item() == pytest.approx(1, abs=1e-4)
    sampled = Counter(tuple(answer.ids) for answer in policy.sample([row], [list(range(4000))])[0])
    assert set(sampled) <= {pair for pair, probability in zip(every, total.tolist(), strict=True) if probability > 0}
    share = torch.tensor([sampled[pair] / 4000 for pair in every])
    assert torch.allclose(share, total, atol=0.03)


def test_at_temperature_0_the_likeliest_answer_is_taken(tiny_bert):
    rows = span_rows(tiny_bert, questions(6), 16)
    policy = make_policy(tiny_bert, temperature=0.0)
    for row, (answer,) in zip(rows, policy.sample(rows, [[0]] * len(rows)), strict=True):
        count = len(row.offsets)
        every = [(0, 0)] + [(i, j) for i in range(1, count + 1) for j in range(i, count + 1)]
        group = [Completion(list(pair), True) for pair in every]
        likelihood = policy.log_probs(policy.pack([row], [group]))[0].sum(1)
        assert tuple(answer.ids) == every[int(likelihood.argmax())]
        assert sum(answer.log_probs) == pytest.approx(likelihood.max().item(), abs=1e-4)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_row_is_what_it_is_whatever_stands_beside_it(tiny_bert, adapter):
    rows = [*span_rows(tiny_bert, questions(4)), *span_rows(tiny_bert, questions(4), 16)]
    policy = make_policy(tiny_bert, make_roles(tiny_bert, adapter))
    groups = policy.sample(rows, [[1, 2]] * len(rows))
    together, values = (policy.pack(rows, groups) for _ in range(2))
    log_probs_BT, values_BU = policy.log_probs(together)[0], policy.values(values)
    assert values_BU.shape == (16, 3)
    for p, row in enumerate(rows):
        alone = policy.pack([row], [groups[p]])
        assert torch.allclose(policy.log_probs(alone)[0], log_probs_BT[2 * p : 2 * p + 2], atol=1e-4)
        assert torch.allclose(policy.values(alone), values_BU[2 * p : 2 * p + 2], atol=1e-4)


def test_the_critic_reads_the_windows_then_the_start_then_the_end(tiny_bert):
    rows = [SpanRow([Window([2, 5, 3, 6, 7, 3], [], 0, 3, 0, 2), Window([2, 5, 3, 7, 8, 3], [], 0, 3, 1, 2)],
                    [(0, 1), (1, 2), (2, 3)], "", {"context": "abc"})]  # fmt: skip
    policy = make_policy(tiny_bert)
    batch = policy.pack(rows, [[Completion([0, 0], True), Completion([1, 2], True), Completion([3, 3], True)]])

    class Backbone:
        def __call__(self, input_ids, attention_mask):
            places = torch.arange(input_ids.numel()).view(*input_ids.shape, 1).float()
            return type("Output", (), {"last_hidden_state": places})

    assert policy.states(Backbone(), batch).squeeze(-1).tolist() == [[3, 0, 0], [3, 3, 4], [3, 10, 10]]


def test_entropies_have_finite_gradients_where_ends_are_not_allowed(tiny_bert):
    rows = span_rows(tiny_bert, questions(3))
    policy = make_policy(tiny_bert)
    batch = policy.pack(rows, policy.sample(rows, [[0]] * 3))
    _, entropies_BT = policy.log_probs(batch, entropies=True)
    entropies_BT.sum().backward()
    gradients = [parameter.grad for parameter in policy.trained("policy").values() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_loss_is_the_mean_cross_entropy_of_start_and_end_over_cls_and_context():
    starts_BL, ends_BL = torch.randn(2, 6), torch.randn(2, 6)
    places_B5 = torch.tensor([[3, 4, 0, 2, 5], [0, 0, 0, 1, 3]])
    inside = [[0, 2, 3, 4], [0, 1, 2]]
    wanted = [
        (cross_entropy(starts_BL[b, inside[b]], torch.tensor(inside[b].index(places_B5[b, 0])))
         + cross_entropy(ends_BL[b, inside[b]], torch.tensor(inside[b].index(places_B5[b, 1])))) / 2
        for b in range(2)
    ]  # fmt: skip
    assert span_loss(starts_BL, ends_BL, places_B5).item() == pytest.approx(sum(wanted).item() / 2)
    assert span_loss(starts_BL, ends_BL, places_B5, denominator=4).item() == pytest.approx(sum(wanted).item() / 4)


def test_smoothing_spreads_the_target_over_the_places():
    starts_BL, ends_BL = torch.randn(1, 6), torch.randn(1, 6)
    places_B5 = torch.tensor([[3, 4, 0, 2, 5]])
    inside = [0, 2, 3, 4]
    wanted = sum(
        cross_entropy(logits[0, inside], torch.tensor(place), label_smoothing=0.2)
        for logits, place in ((starts_BL, 2), (ends_BL, 3))
    )
    assert span_loss(starts_BL, ends_BL, places_B5, 0.2).item() == pytest.approx(wanted.item() / 2)


def test_tokens_have_the_types_of_their_part(tiny_bert):
    rows = [SpanRow([Window([2, 5, 3, 6, 3], [0, 0, 0, 1, 1], 0, 3, 0, 1)], [(0, 1)], "", {"context": "a"}),
            SpanRow([Window([2, 5, 3, 6, 7, 3], [0, 0, 0, 1, 1, 1], 0, 3, 0, 2)], [(0, 1)] * 2, "", {})]  # fmt: skip
    batch = make_policy(tiny_bert).pack(rows, [[Completion([0, 0], True)]] * 2)
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert batch.inputs["cell_PV"].tolist() == [[0, 3, -1], [6, 9, 10]]


@pytest.fixture
def kind(tiny_bert):
    return policy_kind(open_model(ModelConfig(name_or_path=str(tiny_bert), policy="span")))


def settings(tmp_path, **fields):
    return SFTSettings(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **fields)


def test_the_answer_is_marked_in_each_window_that_holds_it(kind, tmp_path):
    record = records(questions(3))[2]
    (whole,) = kind.demonstrations(settings(tmp_path)).encode(record)
    assert whole.columns.keys() == {"input_ids", "token_type_ids", "places"}

    def words(encoded):
        start, end, none, first, last = encoded.columns["places"]
        assert none == 0
        assert start == end == none or first <= start <= end < last
        return kind.tokenizer.decode(encoded.columns["input_ids"][start : end + 1]).replace(" ##", "")

    assert words(whole) == "chair 2"
    limit = len(whole.columns["input_ids"]) - 4
    cut = [words(row) for row in kind.demonstrations(settings(tmp_path, max_length=limit)).encode(record)]
    assert set(cut) == {"[CLS]", "chair 2"}
    (none,) = kind.demonstrations(settings(tmp_path)).encode(records(questions(1))[0])
    assert words(none) == "[CLS]"


def test_an_answer_that_no_window_holds_is_dropped(kind, tmp_path):
    context = "Ada asks about lamp 1."
    with pytest.raises(Unusable):
        kind.demonstrations(settings(tmp_path, max_length=12)).encode(Spanned(context, "Who?", ((0, len(context)),)))


@pytest.mark.parametrize(
    "record", [Demonstration("a", "b", origin="x.jsonl:3"), Labelled("a", ("b",), origin="x.jsonl:3")]
)
def test_rows_of_another_kind_are_one_line_that_names_a_format(kind, tmp_path, record):
    with pytest.raises(UserError, match=r"^x\.jsonl:3: .*format: squad"):
        kind.demonstrations(settings(tmp_path)).encode(record)
    with pytest.raises(UserError, match=r"^x\.jsonl:3: .*format: squad"):
        kind.prompts(None).encode(as_role(record, "prompts"))


def test_class_weights_are_refused(kind, tmp_path):
    with pytest.raises(UserError, match=r"stages\.sft\.class_weights"):
        kind.supervised(None, None, settings(tmp_path, class_weights="balanced"))


def test_prompts_become_inputs(kind, tiny_bert):
    rows = questions(4)
    prompts = [as_role(record, "prompts") for record in records(rows)]
    encoded = [kind.prompts(None).encode(prompt).columns for prompt in prompts]
    extra = [{"extra": json.dumps(prompt.extra)} for prompt in prompts]
    inputs = kind.inputs([{**columns, **more} for columns, more in zip(encoded, extra, strict=True)])
    for made, wanted, row in zip(inputs, span_rows(tiny_bert, rows), rows, strict=True):
        assert [window.ids for window in made.windows] == [window.ids for window in wanted.windows]
        assert made.offsets == wanted.offsets
        assert made.context == row["context"]
        assert made.columns["answers"]["text"] == row["answers"]["text"]
    assert kind.refusal(Prompt("x", {"question": "Who?", "context": " "})) is not None


def test_rows_are_right_where_both_ends_are(kind):
    starts_BL = np.array([[0.0, 9.0, 2.0, 1.0], [3.0, 9.0, 2.0, 1.0], [0.0, 9.0, 2.0, 1.0]])
    ends_BL = np.array([[0.0, 9.0, 2.0, 3.0], [3.0, 9.0, 2.0, 1.0], [0.0, 9.0, 2.0, 1.0]])
    places_B5 = np.array([[2, 3, 0, 2, 4], [0, 0, 0, 2, 4], [2, 3, 0, 2, 4]])
    prediction = type("Prediction", (), {"predictions": (starts_BL, ends_BL), "label_ids": places_B5})
    assert share_right(prediction) == {"accuracy": pytest.approx(2 / 3)}
