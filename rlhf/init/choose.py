"""Chooses what a project trains on which files: the sets of `data:`, the stages, and who judges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.data.records import Record
from rlhf.data.splits import completions, own_prompt
from rlhf.errors import UserError, unknown_name
from rlhf.init.look import Facts, Lengths
from rlhf.init.model import ModelFacts
from rlhf.init.reading import WORDS, Reading

TRAINED = ("sft", "reward", "dpo", "kto", "ppo")
"""The stages that `--to` takes, in the order they run."""
_SETS = ("demonstrations", "preferences", "feedback", "rollouts", "prompts")
"""The sets of `data:` in the order in which they are written."""
_HELD_OUT = re.compile(r"(?<![a-z])(test|valid|validation|val|dev|eval|heldout|held_out)(?![a-z])", re.IGNORECASE)
_INSTRUCT = re.compile(r"(?<![a-z])(instruct|chat|it|sft|dpo)(?![a-z])", re.IGNORECASE)
_CHECKABLE_SHARE = 0.9
"""Share of rows with a number as their answer from which a function can judge replies."""


@dataclass(frozen=True)
class File:
    """A file that was looked at."""

    path: str
    """As the user named it."""
    reading: Reading
    facts: Facts
    split: str | None = None
    """Which split of a folder or hub dataset."""
    lengths: Lengths = field(default_factory=Lengths)
    """Of its rows, as the model counts them."""

    @property
    def held_out(self) -> bool:
        """Whether its name says that it is to test on."""
        return _HELD_OUT.search(self.split or Path(self.path).name) is not None


@dataclass(frozen=True)
class Judge:
    """What scores replies."""

    name: str
    """What the YAML calls it."""
    function: str
    """Where it is: `package.module:function` or `file.py:function`."""
    why: str
    """What it gives for which reply."""


@dataclass(frozen=True)
class Choice:
    """What is trained, and on what."""

    stages: tuple[str, ...]
    sets: dict[str, tuple[File, ...]]
    """Set of `data:`: the files that it is read from."""
    imitated: str | None = None
    """The set whose good replies stand for demonstrations, where no file has any."""
    judge: Judge | None = None
    policy: str = "causal_lm"
    """What kind of policy is trained."""

    def rows(self, name: str) -> int:
        """Usable rows of a set."""
        return sum(file.facts.used for file in self.sets.get(name, ()))


def choose(
    files: Sequence[File], model: ModelFacts, to: Sequence[str] | None = None, reward: str | None = None
) -> Choice:
    """What a project of these files trains.

    Args:
        files: The user's files.
        model: The base model.
        to: The stages that the user asks for; None for those that the files suggest.
        reward: A function of the user's that scores replies.

    Raises:
        UserError: The model cannot learn from the files, or a stage has nothing to learn from.
    """
    policy = _policy(files, model)
    sets = _sets(files)
    judge = _judge(sets, policy, reward)
    stages = _asked_stages(to, policy) if to is not None else _suggested_stages(sets, model, policy)
    if "ppo" in stages and judge is None and "reward" not in stages:
        if "preferences" not in sets:
            raise UserError(
                "--to: ppo needs something to maximise: files with pairs, from which a reward model learns, answers "
                "that can be checked, or a function of yours (--reward judge.py:score)"
            )
        stages = [name for name in TRAINED if name in (*stages, "reward")]
    imitated = None
    if "sft" in stages and "demonstrations" not in sets:
        imitated = next((name for name in ("preferences", "feedback") if name in sets), None)
        if imitated is not None:
            sets["demonstrations"] = sets[imitated]
    if "ppo" in stages and "prompts only" in sets:
        sets["rollouts"] = sets["prompts only"]
    elif "prompts only" in sets and "prompts" not in sets:
        sets["prompts"] = sets["prompts only"]
    sets.pop("prompts only", None)
    _check_fed(stages, sets)
    used = {"demonstrations": {"sft"}, "preferences": {"reward", "dpo"}, "feedback": {"kto"}}
    if "kto" in stages and "feedback" not in sets:
        used["preferences"].add("kto")
    kept = [name for name in _SETS if name in sets and (name not in used or used[name] & set(stages))]
    sets = {name: sets[name] for name in kept}
    return Choice(tuple(stages), sets, imitated, judge, policy)


def _policy(files: Sequence[File], model: ModelFacts) -> str:
    """The kind of policy that these files make of the model."""
    kinds = {file.reading.kind for file in files}
    special = kinds & {"labels", "spans"}
    if special and len(kinds - {"prompts"}) > 1:
        words = " and ".join(WORDS[kind] for kind in sorted(kinds))
        raise UserError(f"these files are {words}, which train different models: run rlhf init for each")
    if "labels" in special:
        images = any(file.reading.format == "images" for file in files)
        if images != model.images:
            reads = "images" if model.images else "text"
            raise UserError(
                f"--model: {model.name} reads {reads}, and these files are {'images' if images else 'text'}"
            )
        return "label"
    if "spans" in special:
        if not model.encoder and model.policy != "span":
            raise UserError(
                f"--model: {model.name} writes text; questions with the place of their answer train an encoder such as "
                "bert-base-uncased"
            )
        return "span"
    talks = next((file.path for file in files if any(map(_is_conversation, file.facts.records))), None)
    if model.policy == "seq2seq" and talks is not None:
        raise UserError(
            f"--model: {model.name} is an encoder-decoder, which reads plain text, and {talks} has conversations; take "
            "a causal model, or name columns of plain text (--columns source=question,target=answer)"
        )
    if not model.writes:
        words = " and ".join(WORDS[kind] for kind in sorted(kinds))
        raise UserError(f"--model: {model.name} writes no replies, and these files are {words}; take a causal model")
    return model.policy


def _is_conversation(record: Record) -> bool:
    return any(isinstance(text, list) for text in (own_prompt(record), *completions(record)))


def _sets(files: Sequence[File]) -> dict[str, tuple[File, ...]]:
    """Which file serves what; those named after a test are prompts to evaluate on, if others remain to train on."""
    roles = {"labels": "demonstrations", "spans": "demonstrations", "text": "demonstrations", "prompts": "prompts only"}
    sets: dict[str, list[File]] = {}
    for file in files:
        kind = file.reading.kind
        others = [other for other in files if other.reading.kind == kind and not other.held_out]
        name = "prompts" if file.held_out and (others or kind == "prompts") else roles.get(kind, str(kind))
        sets.setdefault(name, []).append(file)
    return {name: tuple(chosen) for name, chosen in sets.items()}


def _judge(sets: dict[str, tuple[File, ...]], policy: str, reward: str | None) -> Judge | None:
    if reward is not None:
        return Judge("judge", reward, "the function that --reward names")
    rows = sets.get("demonstrations", ())
    if policy == "label":
        return Judge("right", "rlhf.rewards.right_label:right_label", "1 if the class is that of the row, else 0")
    if policy == "span":
        return Judge("f1", "rlhf.rewards.spans:span_f1", "overlap of the marked words with the right ones, as in SQuAD")
    checkable, used = sum(file.facts.checkable for file in rows), sum(file.facts.used for file in rows)
    if rows and checkable >= _CHECKABLE_SHARE * used and not {"preferences", "feedback"} & sets.keys():
        why = "1 if a reply ends in the number of the column `answer`, else 0: the rows have the right answers"
        return Judge("right", "rlhf.rewards.exact_match:exact_match", why)
    if policy == "seq2seq" and rows and all(file.reading.format == "text_to_text" for file in rows):
        return Judge("rouge", "rlhf.rewards.rouge:rouge", "words in common with the row's target, in their order")
    return None


def _asked_stages(to: Sequence[str], policy: str) -> list[str]:
    """The stages that the user asks for, in the order they run.

    Raises:
        UserError: There is no such stage, or it trains nothing of this kind.
    """
    if not to:
        raise UserError(f"--to: names no stage; known: {', '.join(TRAINED)}")
    for name in to:
        if name not in TRAINED:
            raise UserError(f"--to: there is no stage {name!r} here; {unknown_name(name, TRAINED)}")
        if policy in ("label", "span") and name not in ("sft", "ppo"):
            raise UserError(f"--to: {name} compares replies, and these files train a model that writes none")
    return [name for name in TRAINED if name in to]


def _suggested_stages(sets: dict[str, tuple[File, ...]], model: ModelFacts, policy: str) -> list[str]:
    """Supervised training where there is something to imitate, then what learns from comparisons or judgements."""
    compared = [name for name, rows in (("dpo", "preferences"), ("kto", "feedback")) if rows in sets]
    if policy in ("label", "span"):
        return ["sft"]
    replies = model.template or (model.unknown is not None and _INSTRUCT.search(model.name) is not None)
    imitates = "demonstrations" in sets or (bool(compared) and not replies)
    return [*(["sft"] if imitates else []), *compared[:1]]


def _check_fed(stages: Sequence[str], sets: dict[str, tuple[File, ...]]) -> None:
    """Check that every stage has rows.

    Raises:
        UserError: One has not.
    """
    needs = {
        "sft": ("demonstrations",), "reward": ("preferences",), "dpo": ("preferences",),
        "kto": ("feedback", "preferences"), "ppo": ("rollouts", "preferences", "feedback", "demonstrations"),
    }  # fmt: skip
    if not stages:
        raise UserError(
            "these files have prompts and no replies: nothing learns from them alone; add pairs, demonstrations, or a "
            "function that scores replies (--to ppo --reward judge.py:score)"
        )
    for name in stages:
        if not set(needs[name]) & sets.keys():
            kinds = {"demonstrations": "replies to imitate", "preferences": "pairs", "feedback": "judged replies"}
            raise UserError(f"--to: {name} learns from {kinds.get(needs[name][0], 'prompts')}, and no file has any")
