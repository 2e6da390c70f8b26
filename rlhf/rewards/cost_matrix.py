"""What each answer costs for each right class, and minus that cost as a reward."""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlhf.config import yaml_loader
from rlhf.data.records import Text
from rlhf.errors import UserError, unknown_name
from rlhf.rewards.text import SEPARATOR, completion_text, right_labels

_KEYS = ("default", "right", "answers", "classes", "costs")


def cost_matrix(
    prompts: Sequence[Text], completions: Sequence[Text], matrix: Path, column: str = "label", **columns: Any
) -> list[float | None]:
    """Minus the cost of each answer, given the class that is right.

    Args:
        prompts: Not read.
        completions: B completions, text or messages: an answer's name.
        matrix: The file that has the costs, as `read_cost_matrix` reads it.
        column: The column that holds the right class.
        columns: The data's columns, a value per completion.

    Returns:
        B scores, minus the matrix's units; None without a label.

    Raises:
        UserError: The file cannot be read or is no cost matrix, a right class is not in it, or several are right.
    """
    costs = load_cost_matrix(matrix)
    scores: list[float | None] = []
    for completion, right in zip(completions, right_labels(columns, column, len(completions)), strict=True):
        if right is not None and len(right) != 1:
            several = SEPARATOR.join(sorted(right)) or "no class"
            raise UserError(f"{matrix}: a cost is for one right class, but column {column!r} has {several}")
        scores.append(None if right is None else -costs.cost(next(iter(right)), completion_text(completion).strip()))
    return scores


@dataclass(frozen=True)
class CostMatrix:
    """What each answer costs for each right class.

    Args:
        costs: Costs by right class, then by answer.
        classes: The classes; empty where any name is one.
        others: Answers that are no class, such as a hand-over to a person.
        flat: Costs of such answers where `costs` has no other.
        right: The cost of the right answer where `costs` has no other.
        default: The cost of another class where `costs` has no other; None where `costs` names every pair.
        name: What to call it in a message.
    """

    costs: Mapping[str, Mapping[str, float]]
    classes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    flat: Mapping[str, float] = field(default_factory=dict)
    right: float = 0.0
    default: float | None = None
    name: str = "cost matrix"

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes that it lists, then the answers that are no class."""
        return (*self.classes, *self.others)

    def answers_for(self, names: Sequence[str]) -> tuple[str, ...]:
        """The classes of a model, then the answers that are no class.

        Args:
            names: The classes, by number.

        Raises:
            UserError: One of them is not in the matrix, or the matrix names a class that is none of them.
        """
        for name in names:
            self._known(name)
        if not self.classes:
            _check_names(self.costs, names, self.others, self.name)
        return (*names, *(answer for answer in self.others if answer not in names))

    def cost(self, right: str, answer: str) -> float:
        """The cost of an answer where a class is right.

        An answer that is neither a class nor in the matrix, as a language model may write, costs as much as the worst
        one for this class.

        Raises:
            UserError: The matrix does not have this class.
        """
        self._known(right)
        row = self.costs.get(right, {})
        if answer in row:
            return row[answer]
        if answer in self.flat:
            return self.flat[answer]
        if answer == right:
            return self.right
        if self.default is not None and (not self.classes or answer in self.classes):
            return self.default
        return max(self.cost(right, known) for known in self.answers)

    def expected_costs(self, probabilities_BC: npt.ArrayLike, names: Sequence[str]) -> np.ndarray:
        """What each answer is expected to cost: R(a | x) = sum over c of P(c | x) cost(c, a).

        Args:
            probabilities_BC: Probabilities of B inputs by C classes.
            names: The classes, by number.

        Returns:
            float64 of shape (B, A), answers in the order of `answers_for(names)`.

        Raises:
            UserError: The matrix and the names do not fit.

        Source: Elkan, "The Foundations of Cost-Sensitive Learning", 2001, equation 1.
        """
        answers = self.answers_for(names)
        costs_CA = np.array([[self.cost(right, answer) for answer in answers] for right in names])
        return np.asarray(probabilities_BC, dtype=np.float64) @ costs_CA

    def best_answer(self, probabilities_BC: npt.ArrayLike, names: Sequence[str]) -> list[str]:
        """The answer of least expected cost for each of B inputs, which is what a classifier's probabilities are for.

        Args:
            probabilities_BC: Probabilities of B inputs by C classes.
            names: The classes, by number.

        Source: Elkan (2001), section 1.
        """
        answers = self.answers_for(names)
        return [answers[best] for best in self.expected_costs(probabilities_BC, names).argmin(1)]

    def _known(self, right: str) -> None:
        if self.classes and right not in self.classes:
            raise UserError(f"{self.name}: no costs for the right class {right!r}; {unknown_name(right, self.classes)}")


def load_cost_matrix(path: Path | str) -> CostMatrix:
    """`read_cost_matrix`, once for each content of the file.

    Raises:
        UserError: The file cannot be read or is no cost matrix.
    """
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        raise UserError(f"{path}: no such file; a cost matrix is a CSV or a YAML") from None
    return _loaded(Path(path), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=16)
def _loaded(path: Path, changed: int, size: int) -> CostMatrix:
    return read_cost_matrix(path)


def read_cost_matrix(path: Path | str) -> CostMatrix:
    """A cost matrix from a CSV or a YAML.

    In a CSV the first row names the answers and the first column the right classes. Every class is also an answer; an
    answer that is no class, such as a hand-over, has a column and no row. A YAML names what differs:

        default: 1                      # another class
        right: 0                        # the right class; 0 if left out
        answers: {hand_over: 0.4}       # answers that are no class
        classes: [card_lost, refund]    # optional: any name is a class if left out
        costs: {card_lost: {refund: 5, hand_over: 0.1}}

    Args:
        path: The file; `.yaml` or `.yml` for YAML.

    Raises:
        UserError: It cannot be read or is no cost matrix; the message names the row and the column, or the key.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return (_from_yaml if path.suffix.lower() in (".yaml", ".yml") else _from_csv)(text, str(path))


def _from_csv(text: str, name: str) -> CostMatrix:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{name}:{reader.line_num}: no CSV: {error}") from None
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise UserError(f"{name}: expected answers in the first row and right classes in the first column, with commas")
    answers = rows[0][1][1:]
    for answer in answers:
        if not answer or answers.count(answer) > 1:
            problem = f"the answer {answer!r} is there twice" if answer else "an answer has no name"
            raise UserError(f"{name}:{rows[0][0]}: {problem}")
    costs: dict[str, dict[str, float]] = {}
    for line, (right, *cells) in rows[1:]:
        if len(cells) != len(answers):
            raise UserError(f"{name}:{line}: row {right!r} has {len(cells)} costs for {len(answers)} answers")
        if right in costs:
            raise UserError(f"{name}:{line}: the class {right!r} is there twice")
        if right not in answers:
            raise UserError(f"{name}:{line}: the class {right!r} has no column; {unknown_name(right, answers)}")
        costs[right] = {
            answer: _number(cell, f"{name}:{line}: column {answer!r}")
            for answer, cell in zip(answers, cells, strict=True)
        }
    return CostMatrix(costs, tuple(costs), tuple(answer for answer in answers if answer not in costs), name=name)


def _from_yaml(text: str, name: str) -> CostMatrix:
    try:
        given = yaml_loader.read(text)
    except yaml_loader.NotYaml as error:
        raise UserError(f"{name}{error.where}: no YAML: {error}") from None
    given = _mapping(given, name)
    for key in given:
        if key not in _KEYS:
            raise UserError(f"{name}: unknown key {key!r}; {unknown_name(key, _KEYS)}")
    if "default" not in given:
        raise UserError(f"{name}: say with default what another class than the right one costs")
    classes = given.get("classes") or []
    if not isinstance(classes, list):
        raise UserError(f"{name}: classes: expected a list of names")
    classes = tuple(map(str, classes))
    flat = _numbers(given.get("answers"), f"{name}: answers")
    if both := next((answer for answer in flat if answer in classes), None):
        raise UserError(f"{name}: answers: {both!r} is a class; its costs belong under costs")
    rows = _mapping(given.get("costs") or {}, f"{name}: costs")
    costs = {right: _numbers(row, f"{name}: costs: {right}") for right, row in rows.items()}
    if classes:
        _check_names(costs, classes, tuple(flat), name)
    right, default = (_number(given.get(key, 0), f"{name}: {key}") for key in ("right", "default"))
    return CostMatrix(costs, classes, tuple(flat), flat, right, default, name)


def _check_names(
    costs: Mapping[str, Mapping[str, float]], classes: Sequence[str], others: Sequence[str], name: str
) -> None:
    """Check that costs of a YAML are those of known classes and answers."""
    for right, row in costs.items():
        if right not in classes:
            raise UserError(f"{name}: costs: {right!r} is no class; {unknown_name(right, classes)}")
        for answer in row:
            if answer not in classes and answer not in others:
                hint = unknown_name(answer, [*classes, *others])
                raise UserError(f"{name}: costs: {right}: {answer!r} is neither a class nor under answers; {hint}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected names and values, not {str(value)[:40]!r}")
    return {str(key): inner for key, inner in value.items()}


def _numbers(value: Any, where: str) -> dict[str, float]:
    return {key: _number(inner, f"{where}: {key}") for key, inner in _mapping(value or {}, where).items()}


def _number(value: Any, where: str) -> float:
    """A cost, from text or a number.

    Raises:
        UserError: It is no finite number.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: a cost is a number, not {str(value)[:40]!r}")
    return number
