"""The evaluate stage with a judge that compares, and prompts in groups."""

import json
import math
import shutil

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.evaluation import policy
from rlhf.evaluation.judges import CachedScores
from rlhf.evaluation.kept import GrowingFile
from rlhf.models.scratch import train_tokenizer
from rlhf.pipeline.execute import run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.report.build import build_report
from rlhf.rewards.endpoint import EndpointJudge
from rlhf.rewards.judge_cache import JudgeCache
from rlhf.stages.evaluate import prepare
from rlhf.workflow import StageContext
from tests.support.judge_server import JudgeServer, Raw, prefer_longer
from tests.support.models import save_classifier
from tests.support.projects import pairs, write_project, write_rows
from tests.support.runs import add_stage


@pytest.fixture
def server():
    with JudgeServer(prefer_longer) as running:
        yield running


@pytest.fixture
def project(tmp_path, tiny_llama, server):
    """Two policies, prompts of two kinds, and a judge that compares."""
    rows = [{"prompt": row["prompt"], "kind": "even" if n % 2 == 0 else "odd"} for n, row in enumerate(pairs(16))]
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    path = write_project(
        tmp_path, tiny_llama, stages={"sft": {"max_steps": 2}},
        data={"demonstrations": {"source": str(tmp_path / "pairs.jsonl")}, "prompts": {"source": str(prompts)}},
        rewards={"judge": {"endpoint": server.url, "judge_model": "test"}},
        evaluate={"prompts": 16, "samples": 2, "max_new_tokens": 6, "group_by": "kind"},
    )  # fmt: skip
    project = load_project(path)
    own_folder(project)
    add_stage(project.run_dir, "sft", tiny_llama)
    return project


def test_a_judge_compares_sample_with_sample_and_its_answers_are_kept(project, server):
    run_stage(project, "evaluate")
    folder = project.run_dir / "evaluate"
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        shares = row["preferences"]["judge"]["sft vs base"]
        lengths = [[len(reply["text"]) for reply in row["replies"][name]] for name in ("sft", "base")]
        expected = [0.5 + ((a > b) - (a < b)) / 2 for a, b in zip(*lengths, strict=True)]
        assert shares == expected, "the server prefers the longer reply"
    metrics = read_manifest(folder)["metrics"]
    assert metrics["judges"] == ["judge"]
    assert metrics["comparing"]["judge"]["position_bias"] == 0
    asked = len(server.seen)
    run_stage(project, "evaluate")
    assert len(server.seen) == asked, "answered from the run's folder"


def test_the_report_has_the_comparison_and_the_groups(project):
    run_stage(project, "evaluate")
    report = build_report(project.run_dir)
    (row,) = report["comparisons"]
    assert (row["judge"], row["n"], row["policy_mean"]) == ("judge", 16, None)
    assert row["mean_difference"] == pytest.approx(2 * row["win_rate"] - 1)
    assert [row["group"] for row in report["groups"]] == ["even", "odd"]
    assert sum(row["n"] for row in report["groups"]) == 16
    assert report["comparing"]["judge"]["pairs"] == 32


def test_a_judge_that_cannot_be_asked_is_known_before_anything_trains(project):
    with JudgeServer(lambda server, messages: Raw(401)) as closed:
        refused = load_project(project.path, [f"rewards.judge.endpoint={closed.url}"])
        with pytest.raises(UserError, match=r"rewards.judge: http://127.0.0.1"):
            prepare(StageContext(refused, "evaluate", refused.run_dir / "work", {}))


def test_a_judge_whose_answers_hold_no_verdict_is_refused_before_anything_trains(project):
    """Every comparison would have been left out, after hours, in silence."""
    with JudgeServer(lambda server, messages: "First I weigh them. " * 20) as endless:
        refused = load_project(project.path, [f"rewards.judge.endpoint={endless.url}", "rewards.judge.max_tokens=16"])
        with pytest.raises(UserError, match=r"rewards.judge: .* no readable verdict: .* cut at max_tokens, 16"):
            prepare(StageContext(refused, "evaluate", refused.run_dir / "work", {}))


def test_groups_need_a_column(project):
    wrong = load_project(project.path, ["evaluate.group_by=kinds"])
    with pytest.raises(UserError, match="no prompt has a column 'kinds'; did you mean 'kind'"):
        prepare(StageContext(wrong, "evaluate", wrong.run_dir / "work", {}))


def test_a_prompt_that_the_chat_template_refuses_is_known_before_anything_trains(project, tmp_path):
    """A training row of this kind is dropped; this one would have ended the comparison."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": turns[1:], "kind": "a"}, {"prompt": turns, "kind": "a"}])
    (tmp_path / "strict.jinja").write_text(
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ message['content'] + eos_token }}{% endfor %}"
    )
    strict = load_project(project.path, [f"model.chat_template={tmp_path}/strict.jinja"])
    with pytest.raises(UserError, match=r"prompts.jsonl:2: no reply .*: no system role; so it is with 1 of the 2"):
        prepare(StageContext(strict, "evaluate", strict.run_dir / "work", {}))


def test_a_policy_with_a_model_of_its_own_is_held_against_that_model(tmp_path, tiny_llama, tiny_gpt2):
    """The project's base has another, smaller vocabulary: it cannot even read the policy's tokens."""
    small = train_tokenizer(iter(["a b c"]), 270)
    base = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_llama, vocab_size=len(small)))
    base.save_pretrained(tmp_path / "base")
    small.save_pretrained(tmp_path / "base")
    path = write_project(
        tmp_path, tmp_path / "base",
        stages={"sft": {"max_steps": 1}, "dpo": {"max_steps": 1, "model": {"name_or_path": str(tiny_gpt2)}}},
        rewards={"length": {"function": "rlhf.rewards.length:length"}},
        evaluate={"prompts": 6, "samples": 2, "max_new_tokens": 6},
    )  # fmt: skip
    project = load_project(path)
    own_folder(project)
    add_stage(project.run_dir, "sft", tmp_path / "base")
    add_stage(project.run_dir, "dpo", tiny_gpt2, unmoved=True)
    run_stage(project, "evaluate")
    metrics = read_manifest(project.run_dir / "evaluate")["metrics"]
    assert metrics["policies"] == ["base", "dpo base", "sft", "dpo"]
    assert metrics["references"] == {"sft": "base", "dpo": "dpo base"}
    rows = [json.loads(line) for line in (project.run_dir / "evaluate" / "samples.jsonl").read_text().splitlines()]
    assert [reply["kl"] for row in rows for reply in row["replies"]["dpo"]] == pytest.approx([0.0] * 12, abs=1e-5)
    assert min(reply["kl"] for row in rows for reply in row["replies"]["sft"]) > 1e-3
    pairs_compared = [(row["policy"], row["baseline"]) for row in build_report(project.run_dir)["comparisons"]]
    assert pairs_compared == [("sft", "base"), ("dpo", "dpo base"), ("dpo", "base")]


def test_identical_replies_are_scored_once():
    asked = []

    def judge(prompts, completions, topic):
        asked.append([*zip(prompts, completions, topic, strict=True)])
        return [len(asked) + n / 10 for n in range(len(prompts))]  # never the same twice

    cached = CachedScores(judge)
    turn = [{"role": "user", "content": "q"}]
    assert cached([turn, "p", turn], ["a", "a", "a"], topic=[1, 2, 1]) == [1.0, 1.1, 1.0]
    assert cached(["p", turn, turn], ["a", "b", "a"], topic=[2, 1, 3]) == [1.1, 2.0, 2.1]
    assert asked == [[(turn, "a", 1), ("p", "a", 2)], [(turn, "b", 1), (turn, "a", 3)]]
    assert cached([turn], ["a"], topic=[1]) == [1.0]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'score': 1.0}", "returned a dict"),
        ("return [1.0]", "returned 1 scores for 2 completions"),
        ("return [float(c.split()[0] == 'Yes') for c in completions]", "IndexError.*an empty reply"),
    ],
)
def test_what_a_function_makes_of_a_reply_is_tried_before_anything_trains(tmp_path, tiny_llama, body, said):
    path = write_project(tmp_path, tiny_llama)
    (tmp_path / "judge.py").write_text(f"def score(prompts, completions, **columns):\n    {body}\n")
    project = load_project(path)
    with pytest.raises(UserError, match=said):
        prepare(StageContext(project, "evaluate", tmp_path, {}))


WORDS = {"card": "pin plastic", "cash": "atm money", "rate": "exchange currency"}


@pytest.fixture
def classifiers(tmp_path, tiny_bert):
    """A classifier that is trained for two steps."""
    names = list(WORDS)
    rows = [{"text": f"Where is my {WORDS[names[n % 3]]} number {n}?", "label": names[n % 3]} for n in range(40)]
    base = save_classifier(tiny_bert, tmp_path / "base", tuple(names))
    path = write_project(
        tmp_path, base, rows=rows, stages={"sft": {"max_steps": 2}},
        data={"demonstrations": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.5}},
        rewards={"right": {"function": "rlhf.rewards.right_label:right_label"}},
        evaluate={"prompts": 12, "perturb": ["typos", "drop_words", "typos"], "attributions": 2},
    )  # fmt: skip
    project = load_project(path)
    own_folder(project)
    return project


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_classifiers_answer_perturbed_inputs_and_say_what_they_read(classifiers):
    run_stage(classifiers, "sft")
    run_stage(classifiers, "evaluate")
    folder = classifiers.run_dir / "evaluate"
    assert read_manifest(folder)["metrics"]["kinds"] == {"base": "label", "sft": "label"}
    rows, perturbed = lines(folder / "samples.jsonl"), lines(folder / "perturbed.jsonl")
    assert [row["perturbation"] for row in perturbed] == ["typos"] * 12 + ["drop_words"] * 12
    for row in perturbed:
        assert row["prompt"] != rows[row["index"]]["prompt"]
        assert row["columns"] == rows[row["index"]]["columns"]
    for row in (*rows, *perturbed):
        for (answer,) in row["replies"].values():
            assert answer["scores"]["right"] == float(answer["text"] == row["columns"]["label"])
            assert -3 < answer["log_prob"] < 0
    shown = lines(folder / "attributions.jsonl")
    assert [(entry["scorer"], entry["index"]) for entry in shown] == [("base", 0), ("base", 1), ("sft", 0), ("sft", 1)]
    for entry in shown:
        (answer,) = rows[entry["index"]]["replies"][entry["scorer"]]
        assert entry["completion"] == answer["text"]
        assert math.log(1 / (1 + math.exp(-entry["score"]))) == pytest.approx(answer["log_prob"], abs=1e-4)
    report = build_report(classifiers.run_dir)
    assert report["evaluation"]["measures"] == ["macro F1", "negative Brier score"]
    assert {change["perturbation"] for change in report["robustness"]["changes"]} == {"typos", "drop_words"}
    assert report["classification"]["flips"][0]["n"] == 12


def test_a_perturbation_that_applies_to_nothing_is_refused_before_anything_trains(classifiers):
    wrong = load_project(classifiers.path, ["evaluate.perturb=[noise]"])
    with pytest.raises(UserError, match=r"evaluate.perturb: noise changes none .*: none is an image"):
        prepare(StageContext(wrong, "evaluate", wrong.run_dir / "work", {}))
    with pytest.raises(UserError, match=r"evaluate.perturb.0: input should be 'typos', 'case', .* not 'typo'"):
        load_project(classifiers.path, ["evaluate.perturb=[typo]"])


def test_language_models_are_perturbed_too_and_reward_models_explained(project, tiny_llama, tmp_path):
    scorer = save_classifier(tiny_llama, tmp_path / "scorer", ("score",))
    changed = load_project(
        project.path,
        [
            "evaluate.perturb=[case]",
            "evaluate.attributions=1",
            "evaluate.prompts=6",
            f"rewards={{helpful: {{model: {scorer}}}}}",
        ],
    )
    run_stage(changed, "evaluate")
    folder = changed.run_dir / "evaluate"
    (shown,) = lines(folder / "attributions.jsonl")
    (first, *_) = lines(folder / "samples.jsonl")
    assert (shown["scorer"], shown["of"], shown["index"]) == ("helpful", "sft", 0)
    assert shown["score"] == pytest.approx(first["replies"]["sft"][0]["scores"]["helpful"], abs=1e-4)
    assert [len(row["replies"]["sft"]) for row in lines(folder / "perturbed.jsonl")] == [2] * 6
    report = build_report(changed.run_dir)
    assert report["classification"] is None
    assert [row["judge"] for row in report["robustness"]["comparisons"]] == ["helpful"]


class Ended(BaseException):
    """The end of a process."""


class Counted:
    """How many prompts are sampled for, and what judges are asked; it can end the stage after a batch of anything."""

    def __init__(self, monkeypatch):
        self.sampled = self.judged = 0
        self.left, self.answers_left, self.torn = -1, -1, False
        complete, add, keep, make = policy.complete, GrowingFile.add, JudgeCache.add, CachedScores.__init__

        def completed(project, opened, model, prompts, *args, **kwargs):
            self.sampled += len(prompts)
            return complete(project, opened, model, prompts, *args, **kwargs)

        def made(cached, judge, path=None):
            def judged(prompts, completions, **columns):
                self.judged += len(prompts)
                return judge(prompts, completions, **columns)

            make(cached, judged, path)

        def added(file, batch):
            if self.torn and self.left == 0:
                file.path.open("a").write(json.dumps(batch[0])[:-1])
                raise Ended
            add(file, batch)
            if self.left == 0:
                raise Ended
            self.left -= 1

        def kept(cache, *args):
            keep(cache, *args)
            if self.answers_left == 0:
                raise Ended
            self.answers_left -= 1

        monkeypatch.setattr(policy, "complete", completed)
        monkeypatch.setattr(CachedScores, "__init__", made)
        monkeypatch.setattr(GrowingFile, "add", added)
        monkeypatch.setattr(JudgeCache, "add", kept)
        monkeypatch.setitem(EndpointJudge.__init__.__kwdefaults__, "workers", 1)


@pytest.mark.parametrize(
    ("torn", "batches"),
    [
        pytest.param(False, 6, id="now and then"),
        pytest.param(False, 1, id="after each batch", marks=pytest.mark.slow),
        pytest.param(True, 2, id="in a batch", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_that_ends_again_and_again_becomes_the_same(
    project, server, tmp_path, monkeypatch, torn, batches
):
    """It ends after so many further batches of anything, and after so many further answers of the endpoint."""
    changes = [
        "evaluate.perturb=[case]", "evaluate.prompts=6", "evaluate.batch_size=1", "evaluate.samples=2",
        f"evaluate.retain={{known: {{source: {tmp_path / 'keep.jsonl'}}}}}",
        f"rewards.long={{function: '{tmp_path / 'judge.py'}:score'}}",
    ]  # fmt: skip
    write_rows(tmp_path / "keep.jsonl", [{"text": "A text to find likely."}, {"text": "Another one."}])
    whole, ended = (load_project(project.path, [*changes, f"name={name}"]) for name in ("whole", "ended"))
    for each in (whole, ended):
        own_folder(each)
        shutil.copytree(project.run_dir / "sft", each.run_dir / "sft")
    counted = Counted(monkeypatch)
    run_stage(whole, "evaluate")
    expected = (counted.sampled, counted.judged, len(server.seen))
    counted.sampled = counted.judged = ends = 0
    server.seen.clear()
    counted.torn = torn
    while not (ended.run_dir / "evaluate").exists():
        counted.left, counted.answers_left = batches - 1, 10
        try:
            run_stage(ended, "evaluate")
        except Ended:
            ends += 1
    assert ends > 12 // batches
    if not torn:
        assert (counted.sampled, counted.judged) == expected[:2]
        assert expected[2] <= len(server.seen) <= expected[2] + ends
    folders = [each.run_dir / "evaluate" for each in (whole, ended)]
    names = {path.name for path in folders[0].iterdir()}
    assert names == {"samples.jsonl", "perturbed.jsonl", "retained.jsonl", "stage.json"}
    assert {path.name for path in folders[1].iterdir()} == names
    for name in names - {"stage.json"}:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    first, second = (read_manifest(folder) for folder in folders)
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["comparing"]["judge"]["requests"] > 0
    assert first["artifact"] == second["artifact"]
