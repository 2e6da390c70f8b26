"""Trainers that compute nothing twice log what TRL's log, step for step."""

import inspect

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, RewardConfig, SFTConfig
from trl.kernels import chunked_logprob

from rlhf.trl_trainers.dpo import DPOTrainer
from rlhf.trl_trainers.reward import RewardTrainer
from rlhf.trl_trainers.sft import SFTTrainer
from rlhf.trl_trainers.speedups import NO_SPEEDUPS, Speedups
from rlhf.workflow import stage_of
from tests.support.families import causal, scorer

STEPS = 10
PROMPTS = [[5, 9, 30, 31, 8, 12], [40, 41], [7, 7, 7, 20, 21, 22, 23, 24, 25]]


def rows(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        prompt = PROMPTS[number % 3] + [10 + number % 40]
        sides = [torch.randint(3, 60, (2 + (number * step) % 7,), generator=draw).tolist() for step in (2, 3)]
        found.append({"prompt_ids": prompt, "chosen_ids": [*sides[0], 2], "rejected_ids": [*sides[1], 2]})
    return found


def whole(pairs):
    return [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in pairs]


def demonstrations(pairs):
    return [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        }
        for row in pairs
    ]


def common(folder, **fields):
    given = {
        "per_device_train_batch_size": 4, "max_steps": STEPS, "learning_rate": 1e-3, "use_cpu": True, "bf16": False,
        "report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 3,
        "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    return {"output_dir": str(folder), **given, **fields}


class Tokenised(trl.DPOTrainer):
    """TRL's own trainer on rows that are tokens already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def logs(trainer):
    trainer.train()
    timing = ("runtime", "per_second", "flos", "time")
    return [
        {key: value for key, value in row.items() if not key.endswith(timing)}
        for row in trainer.state.log_history if "loss" in row
    ]  # fmt: skip


def assert_logs(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert one[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (step, key)


def dpo(kind, folder, tokenizer, pairs, speedups=None, family="llama", **fields):
    own = {} if speedups is None else {"speedups": speedups}
    return kind(
        causal(family), causal(family), args=DPOConfig(**common(folder, **fields)),
        train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, **own,
    )  # fmt: skip


VARIANTS = {
    **{loss: {"loss_type": [loss]} for loss in stage_of("dpo").choices["loss_type"]},
    "wpo": {"use_weighting": True},
    "ld": {"ld_alpha": 0.5},
    "mixture": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "forward-kl": {"f_divergence_type": "forward_kl"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_dpo(tmp_path, tokenizer, variant):
    fields = {**VARIANTS[variant], **({"label_smoothing": 0.1} if variant in ("exo_pair", "robust") else {})}
    found = logs(dpo(DPOTrainer, tmp_path, tokenizer, rows(20), Speedups(), **fields))
    assert_logs(found, logs(dpo(Tokenised, tmp_path, tokenizer, rows(20), **fields)))
    assert len(found) == STEPS
    assert found[0]["loss"] != found[-1]["loss"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dpo_with_an_adapter(tmp_path, tokenizer, checkpointing):
    """The reference is the model without its adapter: one fold serves both."""
    found = []
    fields = {"gradient_checkpointing": checkpointing, "learning_rate": 1e-2}
    for kind in (DPOTrainer, Tokenised):
        set_seed(0)
        found.append(logs(kind(
            causal("qwen3"), args=DPOConfig(**common(tmp_path, **fields)),
            train_dataset=Dataset.from_list(rows(20)), processing_class=tokenizer,
            peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
        )))  # fmt: skip
    assert_logs(*found)
    assert found[0][0]["loss"] != found[0][-1]["loss"]


def test_bf16(tmp_path, tokenizer):
    """Rounding differs between a row of its own and a shared one, by no more than bf16 rounds."""
    fields = {"bf16": True, "max_steps": 4}
    found = logs(dpo(DPOTrainer, tmp_path, tokenizer, rows(20), **fields))
    expected = logs(dpo(Tokenised, tmp_path, tokenizer, rows(20), **fields))
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.01)
        assert one["logps/chosen"] == pytest.approx(other["logps/chosen"], rel=0.01)


def reward(kind, folder, tokenizer, pairs, speedups=None, **fields):
    own = {} if speedups is None else {"speedups": speedups}
    return kind(
        scorer("qwen2"), args=RewardConfig(**common(folder, **fields)),
        train_dataset=Dataset.from_list(whole(pairs)), processing_class=tokenizer, **own,
    )  # fmt: skip


def sft(kind, folder, tokenizer, pairs, speedups=None, family="gpt2", **fields):
    own = {} if speedups is None else {"speedups": speedups}
    return kind(
        causal(family), args=SFTConfig(**common(folder, **fields)),
        train_dataset=Dataset.from_list(demonstrations(pairs)), processing_class=tokenizer, **own,
    )  # fmt: skip


STAGES = {"dpo": (dpo, DPOTrainer, Tokenised), "reward": (reward, RewardTrainer, trl.RewardTrainer),
          "sft": (sft, SFTTrainer, trl.SFTTrainer)}  # fmt: skip


@pytest.mark.parametrize(
    "speedups",
    [Speedups(), Speedups(True, False, False), Speedups(False, True, False), Speedups(False, False, True), NO_SPEEDUPS],
)
@pytest.mark.parametrize("stage", STAGES)
def test_each_speedup_alone(tmp_path, tokenizer, stage, speedups):
    make, ours, theirs = STAGES[stage]
    found = logs(make(ours, tmp_path, tokenizer, rows(20), speedups, max_steps=4))
    assert_logs(found, logs(make(theirs, tmp_path, tokenizer, rows(20), max_steps=4)))


def test_the_size_of_the_heads_tiles_is_put_back(tmp_path, tokenizer, monkeypatch):
    """Within a step TRL's head reads a smaller number, forwards and backwards; outside it is TRL's own."""
    before, seen = chunked_logprob.TOKEN_CHUNK_SIZE, []
    for name in ("_forward_tile", "_backward_tile"):
        tile = getattr(chunked_logprob, name)

        def spy(*args, tile=tile, name=name, **kwargs):
            seen.append((name, chunked_logprob.TOKEN_CHUNK_SIZE))
            return tile(*args, **kwargs)

        monkeypatch.setattr(chunked_logprob, name, spy)
    trainer = dpo(DPOTrainer, tmp_path, tokenizer, rows(8), max_steps=1)
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    assert {name for name, _ in seen} == {"_forward_tile", "_backward_tile"}
    assert {size for _, size in seen} == {256}
    assert chunked_logprob.TOKEN_CHUNK_SIZE == before == 4096


RAGGED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "num_train_epochs": 2}
"""Of eleven rows the last step of an epoch has batches of two and of one."""


@pytest.mark.parametrize("stage", STAGES)
def test_without_speedups_every_number_is_trls(tmp_path, tokenizer, stage):
    """Also in a last step whose batches differ in rows, over two steps a log, and in an evaluation of such batches."""
    make, ours, theirs = STAGES[stage]
    rest = {"logging_steps": 2, "per_device_eval_batch_size": 2}
    one = make(ours, tmp_path, tokenizer, rows(11), NO_SPEEDUPS, **RAGGED, **rest)
    other = make(theirs, tmp_path, tokenizer, rows(11), **RAGGED, **rest)
    assert_logs(logs(one), logs(other), tolerance=0)
    found, expected = (trainer.evaluate(trainer.train_dataset) for trainer in (one, other))
    timing = ("runtime", "per_second")
    assert {key: value for key, value in found.items() if not key.endswith(timing)} == {
        key: value for key, value in expected.items() if not key.endswith(timing)
    }


@pytest.mark.parametrize("stage", ["dpo", "sft"])
def test_experts(tmp_path, tokenizer, stage):
    """The routers' loss counts every token of a batch, prompts and padding apart: batches stay TRL's."""
    make, ours, theirs = STAGES[stage]
    found = logs(make(ours, tmp_path, tokenizer, rows(11), Speedups(), "mixtral", **RAGGED))
    expected = logs(make(theirs, tmp_path, tokenizer, rows(11), family="mixtral", **RAGGED))
    assert_logs(found, expected)
    assert found[0]["aux_loss"] > 1


def test_experts_without_a_routers_loss_share(tmp_path, tokenizer):
    fields = {"family": "mixtral", "router_aux_loss_coef": 0.0, "max_steps": 4}
    found = dpo(DPOTrainer, tmp_path, tokenizer, rows(20), Speedups(), **fields)
    assert_logs(logs(found), logs(dpo(Tokenised, tmp_path, tokenizer, rows(20), **fields)))
    assert not found.model.base_model._fold.fold.said


def test_leaving_out_an_incomplete_batch(tmp_path, tokenizer):
    """TRL's loader keeps the whole batches of an incomplete step, and so do buckets."""
    fields = {**RAGGED, "max_steps": -1, "num_train_epochs": 1, "dataloader_drop_last": True}
    for count, steps in ((11, 3), (9, 2), (3, 1)):
        found = logs(dpo(DPOTrainer, tmp_path, tokenizer, rows(count), Speedups(), **fields))
        expected = logs(dpo(Tokenised, tmp_path, tokenizer, rows(count), **fields))
        assert len(found) == steps
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_in_buckets_is_one_batch(tmp_path, tokenizer, stage):
    """Two epochs of 22 rows, steps of 8: as many rows in no bucket, the last step of an epoch smaller than the others.

    Every number is that of steps in one batch: losses, gradients and metrics weigh rows, not batches.
    """
    make, ours, theirs = STAGES[stage]
    fields = {"max_steps": 6, "num_train_epochs": 2}
    cut = make(
        ours, tmp_path, tokenizer, rows(22), per_device_train_batch_size=2, gradient_accumulation_steps=4, **fields
    )
    sizes = [len(batch["input_ids"]) for batch in cut.get_train_dataloader()]
    assert len(sizes) == 12
    assert len(set(sizes)) > 1
    one = make(theirs, tmp_path, tokenizer, rows(22), per_device_train_batch_size=8, **fields)
    found, expected = logs(cut), logs(one)
    for row in (*found, *expected):
        for key in ("min_reward", "max_reward"):  # TRL's means of each batch's extremes
            row.pop(key, None)
    assert_logs(found, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_goes_on_as_it_would_have(tmp_path, tokenizer, stage):
    make, ours, _ = STAGES[stage]
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 9, "save_steps": 4,
              "save_strategy": "steps", "save_total_limit": None}  # fmt: skip
    whole_run = logs(make(ours, tmp_path / "one", tokenizer, rows(18), **fields))
    again = make(ours, tmp_path / "one", tokenizer, rows(18), **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-4"))
    resumed = [row for row in again.state.log_history if "loss" in row]
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in whole_run], abs=1e-6)
    assert len(resumed) == 9


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired", "sft"])
def test_losses_of_a_whole_batch_keep_their_batches(tmp_path, tokenizer, loss):
    fields = {**RAGGED, "loss_type": [loss]}
    found = logs(dpo(DPOTrainer, tmp_path, tokenizer, rows(11), Speedups(), **fields))
    assert_logs(found, logs(dpo(Tokenised, tmp_path, tokenizer, rows(11), **fields)))


def test_the_head_runs_only_where_a_label_is(tmp_path, tokenizer):
    trainer = sft(SFTTrainer, tmp_path, tokenizer, rows(4), max_steps=1)
    seen = []
    kernel = trl.trainer.utils._ChunkedLogProbFunction
    apply = kernel.apply
    try:
        kernel.apply = lambda states, *rest: seen.append(len(states)) or apply(states, *rest)
        trainer.train()
    finally:
        kernel.apply = apply
    assert seen == [sum(len(row["chosen_ids"]) for row in rows(4))]


def test_a_batch_without_labels(tmp_path, tokenizer):
    trainer = sft(SFTTrainer, tmp_path, tokenizer, rows(4), max_steps=1)
    ids = torch.tensor([[5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, -100)}
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss == 0
    loss.backward()


def test_evaluation_and_generation_are_as_without(tmp_path, tokenizer):
    pairs = rows(10, seed=1)
    found, expected = (
        dpo(kind, tmp_path, tokenizer, rows(8), max_steps=1, per_device_eval_batch_size=10).evaluate(
            Dataset.from_list(pairs)
        )
        for kind in (DPOTrainer, Tokenised)
    )
    for key in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen", "eval_entropy"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-5)
    model, plain = dpo(DPOTrainer, tmp_path, tokenizer, rows(8), max_steps=1).model.eval(), causal("llama").eval()
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    ids, mask = torch.tensor([[1, 1, *PROMPTS[1]], [5, 9, 30, 31]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    one, other = (each.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False) for each in (model, plain))
    assert torch.equal(one, other)


def stored(trainer):
    return [column for column in trainer.train_dataset.column_names if column.startswith("ref_")]


def on_disk(folder, pairs):
    Dataset.from_list(pairs).save_to_disk(folder)
    return Dataset.load_from_disk(folder)


def test_stored_reference_log_probs(tmp_path, tokenizer):
    """Computed once, before training, and kept beside the data; what decides them is their name.

    A training draws the same random numbers whether it computes or finds them.
    """
    data = on_disk(tmp_path / "data", rows(8))

    def make(kind, **fields):
        given = {"precompute_ref_log_probs": True, "max_steps": 3, **fields}
        reference = None if given["precompute_ref_log_probs"] else causal("llama")
        return kind(causal("llama"), reference, args=DPOConfig(**common(tmp_path, **given)), train_dataset=data,
                    processing_class=tokenizer)  # fmt: skip

    def files():
        return len(list((tmp_path / "data").glob("cache-*.arrow")))

    first = make(DPOTrainer)
    drawn = torch.get_rng_state()
    assert stored(first) == ["ref_chosen_logps", "ref_rejected_logps"]
    assert files() == 1
    again = make(DPOTrainer)
    assert files() == 1
    assert torch.equal(torch.get_rng_state(), drawn)
    expected = logs(make(Tokenised, precompute_ref_log_probs=False))
    assert_logs(logs(first), expected)
    assert_logs(logs(again), expected)
    alpha = make(DPOTrainer, ld_alpha=0.5)
    assert files() == 2
    assert_logs(logs(alpha), logs(make(Tokenised, precompute_ref_log_probs=False, ld_alpha=0.5)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_demonstrations_do_not_see_one_another(tmp_path, family):
    """All rows in one step: packed into rows of 40 tokens, loss and gradient are those of each by itself."""
    words = Tokenizer(WordLevel({f"t{number}": number for number in range(60)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2", pad_token="t1")
    fields = common(tmp_path, max_steps=2, per_device_train_batch_size=20, max_length=40)
    found = [
        logs(SFTTrainer(
            causal(family), args=SFTConfig(**fields, packing=packing),
            train_dataset=Dataset.from_list(demonstrations(rows(20))), processing_class=tokenizer,
        ))
        for packing in (True, False)
    ]  # fmt: skip
    for one, other in zip(*found, strict=True):
        for key in ("loss", "grad_norm", "num_tokens"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)
