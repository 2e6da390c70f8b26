"""What training itself can get wrong in silence: EOS, padding, rows that vanish, accumulation, KL, likelihood.

That a resumed run equals the uninterrupted one is held in tests/pipeline/test_runner.py (a stage, to the last byte),
tests/trl_trainers/test_speedups.py (sft, reward, dpo) and tests/ppo/test_stage.py (ppo, rollouts included).
"""

import json
import random
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlhf.config.project import ModelConfig
from rlhf.data.tokenize import IGNORED
from rlhf.models.heads import score_head
from rlhf.models.load import load_scorer, source_of
from rlhf.models.tokenizer import load_tokenizer
from rlhf.objectives.kl import k1
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.policies.completion import Completion
from rlhf.policies.kl import sequence_kl
from rlhf.report.build import build_report
from rlhf.report.caveats import caveats
from rlhf.report.sentences import statements
from rlhf.rewards.model import score_groups
from rlhf.stages import sft
from rlhf.trl_trainers.dpo import falling_chosen
from rlhf.workflow import StageContext
from tests.support.damage import edit_json, record_of
from tests.support.models import strengthened
from tests.support.ppo import make_trainer
from tests.support.projects import make_project, pairs, write_rows


@pytest.fixture
def never_stops(tiny_llama, tmp_path):
    """A base model whose tokenizer pads with its EOS, as many published ones do."""
    folder = shutil.copytree(tiny_llama, tmp_path / "pads-with-eos")
    edit_json(folder / "tokenizer_config.json", pad_token="<|end|>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    return folder


def context_of(project, stage):
    return StageContext(project, stage, project.run_dir / f".{stage}.partial", {})


def test_a_stage_that_learned_nothing_is_named(tmp_path, tiny_llama):
    """Which of the stages is bad is said by name, with its loss before and after."""
    options = {"max_steps": 3, "save_strategy": "no", "learning_rate": 1e-30}
    project = make_project(tmp_path, tiny_llama, stages={"sft": options, "dpo": {**options, "learning_rate": 1e-2}})
    for stage in ("sft", "dpo"):
        run_stage(project, stage)
    limits = [caveat.about for caveat in caveats(build_report(project.run_dir)) if caveat.id == "loss"]
    assert limits == ["sft"]


def test_pad_that_is_eos_is_mended_and_every_end_is_learned(tmp_path, never_stops):
    project = make_project(tmp_path, never_stops, stages={"sft": {"max_steps": 1, "save_strategy": "no"}})
    run_stage(project, "sft")
    recorded = record_of(project.run_dir / "sft")["tokenizer"]
    assert (recorded["eos"], recorded["pad"]) == ("<|end|>", "<|pad|>")
    ready = sft.prepare(context_of(project, "sft"))
    end, pad = ready.start.tokenizer.eos_token_id, ready.start.tokenizer.pad_token_id
    batch = DataCollatorForLanguageModeling(pad_token_id=pad)(list(ready.data.train.select(range(6))))
    assert len({len(row) for row in ready.data.train["input_ids"][:6]}) > 1, "some rows are padded"
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        assert labels[length - 1] == end == ids[length - 1], "the end is trained on"
        assert (labels[length:] == IGNORED).all(), "padding is not"
    # what hides every end where the two are one: a loss that masks padding by its id
    hidden = batch["input_ids"].masked_fill(batch["input_ids"] == end, IGNORED)
    assert not (hidden == end).any()


@pytest.mark.parametrize("base", ["plain", "pads with EOS"])
def test_a_score_is_read_at_the_last_token_that_is_no_padding(tiny_llama, never_stops, base):
    """Padded on the right, on the left or not at all, with one EOS at the end: the head on that EOS's state."""
    config = ModelConfig(name_or_path=str(tiny_llama if base == "plain" else never_stops))
    tokenizer = load_tokenizer(config)
    torch.manual_seed(0)
    model = strengthened(load_scorer(source_of(config), config, tokenizer, new_head=True).model.eval(), 4.0)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    row, longer = [30, 41, 52, 63, end], [70, 81, 92, 33, 44, 55, 66, end]
    ids = torch.tensor([row])
    with torch.no_grad():
        states = model.base_model(input_ids=ids).last_hidden_state[0]
        by_hand = score_head(model)(states).squeeze(-1)
    assert score_groups(model, [[row]])[0][0] == pytest.approx(by_hand[-1].item(), abs=1e-5)
    together = score_groups(model, [[row], [longer]])
    assert together[0][0] == pytest.approx(by_hand[-1].item(), abs=1e-4), "padded on the right"
    left = torch.tensor([[pad] * 3 + row])
    mask = (left != pad).long()
    with torch.no_grad():
        score = model(input_ids=left, attention_mask=mask, position_ids=mask.cumsum(1).sub(1).clamp(min=0)).logits
        model.config.pad_token_id = end  # the defect: the end is taken for padding
        wrong = model(input_ids=ids).logits.item()
    assert score.item() == pytest.approx(by_hand[-1].item(), abs=1e-4), "padded on the left"
    assert wrong == pytest.approx(by_hand[-2].item(), abs=1e-5)
    assert wrong != pytest.approx(by_hand[-1].item(), abs=1e-2)


def test_no_row_goes_without_a_reason(tmp_path, tiny_llama):
    """Too long a prompt (all its labels would be masked), an empty reply, a pair over the limit, a cut end: counted."""
    plain = pairs(30)
    long_prompt = {"prompt": "Ada asks " * 60, "chosen": " Hello.", "rejected": " No."}
    long_reply = {"prompt": "Ben asks.", "chosen": " Hello" * 60, "rejected": " No."}
    empty = {"prompt": "Cleo asks.", "chosen": "  ", "rejected": " No."}
    rows = [*plain, long_prompt, long_reply, empty]
    stages = {"sft": {"max_length": 60}, "reward": {"max_length": 60}, "dpo": {"max_length": 60}}
    project = make_project(tmp_path, tiny_llama, rows, stages=stages)
    dropped = {
        "sft": {"prompt longer than max_length": 1, "empty side": 1},
        "reward": {"longer than max_length": 2, "empty side": 1},
        "dpo": {"prompt longer than max_length": 1, "empty side": 1},
    }
    for stage, role in (("sft", "demonstrations"), ("reward", "preferences"), ("dpo", "preferences")):
        prepare_stage(project, stage)
        data = project.run_dir / f".{stage}.partial/data"
        counts = json.loads((data / "ledger.json").read_text())["sets"][role]
        assert counts["dropped"] == dropped[stage]
        assert counts["read"] == 33 == counts["trained"] + counts["evaluated"] + sum(dropped[stage].values())
        assert (counts["truncated"], counts["eos_lost"]) == ((0, 0) if stage == "reward" else (1, 1))
        kept_aside = [json.loads(line) for line in (data / "dropped.jsonl").read_text().splitlines()]
        assert {row["origin"].rpartition(":")[2] for row in kept_aside} >= {"31", "33"}, "by file and line"
    learned = sft.prepare(context_of(project, "sft")).data.train["labels"]
    assert all(any(label != IGNORED for label in row) for row in learned), "no row without a loss"


def test_a_reward_model_that_is_no_better_than_length_is_told(tmp_path, tiny_llama):
    """The longer reply is chosen, always: a high accuracy shows nothing, and the report says so."""
    draw = random.Random(0)
    rows = [
        {"prompt": f"Question {n}?", "chosen": " well" * draw.randint(6, 9), "rejected": " well" * draw.randint(1, 4)}
        for n in range(80)
    ]
    write_rows(tmp_path / "length.jsonl", rows)
    data = {"preferences": {"source": str(tmp_path / "length.jsonl"), "holdout": 0.3}}
    stages = {"reward": {"max_steps": 20, "learning_rate": 1e-2, "save_strategy": "no"}}
    project = make_project(tmp_path, tiny_llama, data=data, stages=stages, evaluate={"enabled": False})
    run_stage(project, "reward")
    metrics = build_report(project.run_dir)["stages"]["reward"]
    assert metrics["accuracy"] > 0.9
    assert metrics["length_baseline"] == 1.0
    assert metrics["accuracy_ci"][0] < metrics["accuracy"] <= metrics["accuracy_ci"][1] + 1e-9
    (statement,) = statements(build_report(project.run_dir))
    assert (statement.id, statement.kind) == (("reward model", "reward"), "no difference")


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_eight_batches_of_one_are_one_of_eight(tmp_path, tiny_llama, stage):
    """Rows of unlike lengths, through the stage itself (ppo: tests/ppo/test_trainer.py)."""
    found = []
    for size in (1, 8):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 2,
                   "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}  # fmt: skip
        project = make_project(tmp_path, tiny_llama, name=f"by-{size}", stages={stage: options})
        run_stage(project, stage)
        lines = (project.run_dir / stage / "metrics.jsonl").read_text().splitlines()
        steps = [row for row in map(json.loads, lines) if "loss" in row]
        found.append([(row["loss"], row["grad_norm"]) for row in steps])
        found[-1].append((record_of(project.run_dir / stage)["metrics"]["loss"], 0.0))
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert found[0][0][1] > 1e-3, "gradients that would show a factor of eight"


def test_the_kl_that_is_reported_is_never_negative(tiny_llama):
    """Of the very replies whose mean log-ratio is negative, which is what an estimate from samples can be."""
    torch.manual_seed(0)
    policy = strengthened(AutoModelForCausalLM.from_pretrained(tiny_llama).eval(), 4.0)
    reference = AutoModelForCausalLM.from_config(policy.config).eval()
    prompt, likely_elsewhere = [30, 41, 52], []
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(6):  # each token the one that the reference prefers most against the policy
            logits = [model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for model in (policy, reference)]
            ids.append(int((logits[1] - logits[0]).argmax()))
            likely_elsewhere.append(k1(*(one[ids[-1]] for one in logits)).item())
    assert sum(likely_elsewhere) < -1
    ((exact,),) = sequence_kl(policy, reference, [prompt], [[Completion(ids[3:], finished=False)]])
    assert exact > 0


def test_a_mean_kl_below_zero_by_more_than_chance_is_explained(tmp_path, tiny_llama, capsys):
    """Online, the estimate is a mean over a rollout: a negative one means that sampling and training disagree."""
    trainer = make_trainer(tmp_path, tiny_llama)
    fine = {"response/eos_share": 1.0, "response/scored_share": 1.0}
    trainer._warn({"objective/kl": -0.2, **fine})
    assert "KL" not in capsys.readouterr().err
    trainer._warn({"objective/kl": -3.0, **fine})
    assert "is -3.00 nats a reply: below 0 by more than chance, the log-probabilities of sampling" in (
        capsys.readouterr().err
    )


def logged(chosen, margins):
    pairs_of = zip(chosen, margins, strict=True)
    rows = [{"step": step, "rewards/chosen": one, "rewards/margins": two} for step, (one, two) in enumerate(pairs_of)]
    return [{"eval_loss": 0.7}, *rows, {"train_runtime": 1.0}]


def test_chosen_replies_that_become_less_likely_are_told():
    """By hand: thirds of two rows, means 0 and -1.05 with variances 0.02 and 0.005."""
    growing = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    found = falling_chosen(logged([0.1, -0.1, -0.5, -0.6, -1.0, -1.1], growing))
    assert "fell from 0.000 to -1.050 while the margin grew from 0.100 to 0.900" in found
    assert not found.endswith(".")
    rising = [-one for one in [0.1, -0.1, -0.5, -0.6, -1.0, -1.1]]
    assert falling_chosen(logged(rising, growing)) is None
    assert falling_chosen(logged([0.1, -0.1, -0.5, -0.6, -1.0, -1.1], growing[::-1])) is None, "no margin, no success"
    assert falling_chosen(logged([0.9, -0.9, 0.5, -0.5, 0.8, -1.2], growing)) is None, "no more than noise"
    assert falling_chosen(logged([0.0, -1.0, -2.0, -3.0, -4.0], growing[:5])) is None, "too few to tell"


def test_the_dpo_stage_tells_it(tmp_path, tiny_llama):
    """At too high a learning rate both sides of every pair sink, the rejected ones further; the report has the line."""
    rows = [
        {"prompt": f"Question {n}?", "chosen": f" I do not know {n}.", "rejected": f" I do not know {n}, no no no no."}
        for n in range(40)
    ]
    options = {"max_steps": 30, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no"}
    project = make_project(tmp_path, tiny_llama, rows, stages={"dpo": options})
    run_stage(project, "dpo")
    metrics = record_of(project.run_dir / "dpo")["metrics"]
    lines = (project.run_dir / "dpo/metrics.jsonl").read_text().splitlines()
    assert metrics["warning"] == falling_chosen([json.loads(line) for line in lines])
    assert "the chosen replies became less likely" in metrics["warning"]
    assert ("warning", "dpo") in {(caveat.id, caveat.about) for caveat in caveats(build_report(project.run_dir))}
