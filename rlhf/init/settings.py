"""The settings of a project, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf.init.choose import File
from rlhf.init.draft import EVALUATE, REPLIES, Batch, Draft, held_out_share
from rlhf.init.look import Facts, Lengths
from rlhf.init.model import TINY, ModelFacts
from rlhf.init.rates import rate
from rlhf.init.reading import WORDS
from rlhf.init.write import Line, section

_COVERED = 0.99
"""Share of rows that `max_length` leaves whole."""


def settings(draft: Draft, batches: Mapping[str, Batch]) -> list[Line]:
    """The lines of the YAML.

    Args:
        draft: What it follows from.
        batches: How each stage cuts its steps.
    """
    lines = [
        Line("name", draft.name, f"the results go to runs/{draft.name}"),
        Line("seed", 0, "of everything random; another seed holds out and samples other rows"),
        section("model", _model(draft)),
        section("data", [_set(draft, name) for name in draft.choice.sets]),
    ]
    judge = draft.choice.judge
    if judge is not None:
        lines.append(section("rewards", [section(judge.name, [Line("function", judge.function, judge.why)])],
                             "what better means; it compares the stages in the end"))  # fmt: skip
    if {"reward", "ppo"} <= set(draft.choice.stages):
        why = "ppo starts if the reward model ranks held-out pairs better than length and chance; `warn` goes on anyway"
        lines.append(Line("gate", "stop", why))
    stages = [
        section(name, _stage(draft, name, batches[name]), f"{_title(draft, name)}{batches[name].time}")
        for name in draft.choice.stages
    ]
    lines.append(section("stages", stages, "run in this order, each from what is before it"))
    lines.append(section(EVALUATE, _evaluate(draft, batches.get(EVALUATE)), _verdict(draft)))
    return lines


_TITLES = {
    "sft": "supervised training: imitate the replies",
    "reward": "a reward model, which scores replies as the pairs compare them",
    "dpo": "learn from the pairs directly, without a reward model",
    "kto": "learn from replies that were judged one at a time",
    "ppo": "the model writes, what it writes is scored, and it learns from the scores",
}


def _title(draft: Draft, stage: str) -> str:
    special = {"label": "learn the classes", "span": "learn where the answers stand"}
    if stage == "sft" and draft.choice.policy in special:
        return f"supervised training: {special[draft.choice.policy]}"
    return _TITLES[stage]


def _model(draft: Draft) -> list[Line]:
    model = draft.model
    known = [model.size]
    if model.context:
        known.append(f"reads {model.context:,} tokens at once")
    if model.codec is not None and model.writes:
        known.append(
            "has a chat template" if model.template else "has no chat template: conversations as Human/Assistant"
        )
    if model.unknown:
        known.append(f"{model.unknown}, so nothing else is known of it")
    lines = [Line("name_or_path", model.name, "; ".join(known))]
    usual = {"label": model.policy == "label", "span": model.policy == "span"}.get(draft.choice.policy, True)
    if not usual:
        lines.append(Line("policy", draft.choice.policy, "it gets a head for the classes instead of writing"))
    if draft.dtype is not None:
        lines.append(Line("dtype", draft.dtype, "half the memory for weights that LoRA leaves as they are"))
    if draft.adapter:
        why = "LoRA: trains a small part beside the weights, which stay as they are; more rank can learn more"
        lines.append(Line("adapter", {"r": 16}, why))
    else:
        lines.append(
            Line("adapter", None, "all weights are trained" + (": the model is small" if _small(model) else ""))
        )
    return lines


def _small(model: ModelFacts) -> bool:
    return model.parameters is not None and model.parameters < TINY


def _set(draft: Draft, name: str) -> Line:
    """A set of `data:`, as a mapping or, of several files, as a list."""
    files = draft.choice.sets[name]
    held = name not in ("prompts", "rollouts")
    if len(files) == 1:
        return section(name, [*_source(draft, files[0]), *(_holdout(files) if held else ())], _purpose(draft, name))
    entries = [{line.key: line.value for line in _source(draft, file)} for file in files]
    if held:
        entries[0] |= {line.key: line.value for line in _holdout(files)}
    return Line(name, entries, "; ".join([_purpose(draft, name), *(described(file.facts) for file in files)]))


def _purpose(draft: Draft, name: str) -> str:
    if name == "demonstrations" and draft.choice.imitated is not None:
        return "the better reply of each pair" if draft.choice.imitated == "preferences" else "the replies judged good"
    return {
        "demonstrations": "what sft imitates", "preferences": "pairs of a better and a worse reply",
        "feedback": "replies judged one at a time", "prompts": "what the stages are compared on; never trained on",
        "rollouts": "what ppo replies to",
    }[name]  # fmt: skip


def _source(draft: Draft, file: File) -> list[Line]:
    lines = [Line("source", file.path, described(file.facts))]
    reasons = {
        "format": f"read as {WORDS[file.reading.kind]}", "columns": "our name: the file's column",
        "values": "what the values of the file stand for; null leaves a row out",
        "chat": "plain text becomes a conversation, which the chat template writes",
    }  # fmt: skip
    if file.split is not None:
        lines.append(Line("split", file.split, "the files of this split"))
    lines += [Line(key, value, reasons[key]) for key, value in file.reading.settings().items()]
    if draft.limit is not None:
        lines.append(Line("limit", draft.limit, "the first rows alone, as --limit says"))
    return lines


def described(facts: Facts) -> str:
    """A file in a sentence."""
    more = "more than " if facts.more else ""
    parts = [f"{more}{facts.used:,} usable rows"]
    lost = facts.dropped.total()
    if lost:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts.dropped.most_common(3))
        parts.append(f"{lost:,} not usable ({reasons})")
    if facts.duplicates:
        parts.append(f"{facts.duplicates:,} duplicates")
    if facts.prompts and facts.used / facts.prompts > 1.05:
        parts.append(f"{facts.used / facts.prompts:.1f} rows a prompt")
    if facts.classes:
        parts.append(_classes(facts))
    if facts.language:
        parts.append(facts.language)
    return ", ".join(parts)


def _classes(facts: Facts) -> str:
    if facts.classes.keys() <= {"good", "bad"}:
        return f"{facts.classes['good']:,} good and {facts.classes['bad']:,} bad"
    rarest = min(facts.classes.values())
    return f"{len(facts.classes)} classes, the rarest with {rarest:,} rows"


def _holdout(files: Sequence[File]) -> list[Line]:
    """The share of prompts that no stage trains on."""
    share = held_out_share(files)
    count = round(share * sum(file.facts.used for file in files))
    return [Line("holdout", share, f"about {count:,} rows are never trained on: what is reported is measured on them")]


def _stage(draft: Draft, stage: str, batch: Batch) -> list[Line]:
    chosen = rate(_learner(draft, stage), draft.adapter, draft.model.parameters)
    lines = [Line("learning_rate", chosen.value, chosen.source)]
    if stage == "ppo":
        return [*lines, *_online(draft), *batch.lines]
    epochs, why = _epochs(draft, stage)
    lines.append(Line("num_train_epochs", epochs, why))
    if not draft.model.images:
        lines.append(_max_length(draft, stage))
    if stage in ("dpo", "kto"):
        lines += _balance(draft) if stage == "kto" else []
        lines.append(
            Line("beta", 0.1, "keeps the policy near what it starts from; less lets it move further; 0.05 to 0.5")
        )
    return [*lines, *batch.lines]


def _balance(draft: Draft) -> list[Line]:
    """A weight with which good and bad rows count alike, where one kind is rarer."""
    files = draft.choice.sets.get("feedback", ())
    good, bad = (sum(file.facts.classes[kind] for file in files) for kind in ("good", "bad"))
    if not good or not bad or bad <= good <= 4 / 3 * bad:
        return []
    rare, many = ("desirable", bad / good) if good < bad else ("undesirable", good / bad)
    why = f"{good:,} good and {bad:,} bad rows count alike (Ethayarajh et al. 2024, Eq. 8)"
    return [Line(f"{rare}_weight", round(many, 2), why)]


def _learner(draft: Draft, stage: str) -> str:
    return draft.choice.policy if stage == "sft" and draft.choice.policy != "causal_lm" else stage


def _epochs(draft: Draft, stage: str) -> tuple[int, str]:
    rows = draft.count(stage)
    if stage == "reward":
        if rows < 2000:
            return 2, f"{rows:,} pairs are few for one pass; more than two learn them by heart"
        return 1, "more passes learn the pairs by heart (Ouyang et al. 2022, appendix C)"
    if stage in ("dpo", "kto"):
        return (2, f"{rows:,} rows are few for one pass") if rows < 1000 else (1, "as in Zephyr; more drifts further")
    if draft.choice.policy in ("label", "span"):
        return (10, f"{rows:,} rows are few") if rows < 1000 else (4, "2 to 4 (Devlin et al. 2019, appendix A.3)")
    if rows < 10_000:
        return 3, "usual for up to 10,000 rows; more learns them by heart"
    return (2, "usual for tens of thousands of rows") if rows < 50_000 else (1, "so many rows suffice once")


def _max_length(draft: Draft, stage: str) -> Line:
    lengths = draft.lengths(stage)
    covering, longest = lengths.covering(_COVERED), lengths.covering(1.0)
    wanted = _round_up(max(covering, 16))
    length = min(wanted, draft.model.context or wanted)
    over = sum(whole > length for whole in lengths.whole) / max(1, len(lengths.whole))
    what = "dropped" if stage == "reward" else "cut, or dropped if nothing is left to learn"
    counted = "" if lengths.exact else "assumed from the characters, 3.5 a token: "
    why = f"{counted}99% of the rows have at most {covering:,} tokens, the longest {longest:,}"
    why += f"; {over:.1%} are longer and are {what}" if over else ""
    return Line("max_length", length, why + (", as the model reads no more" if length < wanted else ""))


def _round_up(length: int) -> int:
    """The next multiple of 16, or of 64 above 256: lengths that devices compute well."""
    step = 16 if length <= 256 else 64
    return -(-length // step) * step


def _replies(draft: Draft) -> Line:
    """The longest reply, as the rows have it."""
    files = [file for file in draft.files if file.reading.kind not in ("prompts", "labels", "spans")]
    lengths = Lengths.joined(file.lengths for file in files)
    covering = lengths.covering(_COVERED, replies=True)
    length = _round_up(covering) if covering else 256
    most = max(16, (draft.model.context or 4 * length) // 2)
    why = f"99% of the replies in the rows have at most {covering:,} tokens" if covering else "the rows have no replies"
    return Line("max_new_tokens", min(length, most), why + (": half of what the model reads" if length > most else ""))


def _online(draft: Draft) -> list[Line]:
    choice, lines = draft.choice, []
    if "reward" not in choice.stages and choice.judge is not None:
        lines.append(
            Line("rewards", {choice.judge.name: 1.0}, "what is maximised; hold another judge against it if you can")
        )
        if choice.policy == "label":
            lines.append(Line("advantage", "exact", "all classes are scored, none is sampled"))
        else:
            lines.append(
                Line("advantage", "rloo", "replies to a prompt are compared with each other; no critic is needed")
            )
            lines.append(Line("samples_per_prompt", 8, "replies that are compared; 4 to 16"))
    else:
        lines.append(Line("samples_per_prompt", 4, "the prompt is computed once for them"))
    if choice.policy != "label":
        lines.append(_replies(draft))
    episodes = min(20_000, max(1024, 4 * draft.count("ppo")))
    lines.append(Line("total_episodes", episodes, "replies in all; more learns longer and moves further"))
    lines.append(Line("kl_coef", 0.05, "cost of moving away from the start; more keeps nearer; 0.01 to 0.2"))
    return lines


def _evaluate(draft: Draft, batch: Batch | None) -> list[Line]:
    if batch is None:
        return [Line("prompts", 2000, "held-out rows that every stage answers; more makes the intervals narrower")]
    less = [Line("batch_size", batch.at_once, batch.why or "replies at once")] if batch.at_once < REPLIES else []
    prompts = Line("prompts", 200, "held-out prompts that stages reply to, at most; more makes the intervals narrower")
    return [prompts, Line("samples", 2, "replies to each"), _replies(draft), *less]


def _verdict(draft: Draft) -> str:
    choice = draft.choice
    if choice.judge is not None:
        return f"held-out prompts, judged by {choice.judge.name}"
    if "reward" in choice.stages:
        same = (
            "ppo maximises it, so hold another judge against it" if "ppo" in choice.stages else "it is measured itself"
        )
        return f"held-out prompts, judged by the reward model; {same}"
    return (
        "no judge is known, so replies are compared by what needs none: loss and accuracy on held-out rows, KL, "
        "lengths, side by side; to have them judged, name a function under rewards: {good: {function: judge.py:score}}"
    )


def header(version: str, draft: Draft, machine: str) -> list[str]:
    """The sentences above the settings."""
    names = ", ".join(dict.fromkeys(file.path for file in draft.files))
    return [f"Written by rlhf init {version} from {names}, for {machine}.", "Every line says why it is there."]
