"""Names and types of the trainers' config fields, read from source: importing them would import torch.

A stage takes every field of its trainer's config class (`trl.DPOConfig` and so on). To refuse a misspelt key before
anything runs, and still start in milliseconds, the class bodies of the installed packages are parsed, not executed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf.config import ranges
from rlhf.config.ranges import shown
from rlhf.config.versions import library_moved
from rlhf.errors import unknown_name
from rlhf.workflow import stage_of, stages

_PUSH = "only `rlhf publish` pushes; publish: says where"
_DATA = "the data is tokenised before the trainer sees it; format: and columns: of its source say how it is read"
_SHARDING = "sharding is set where processes are: rlhf run --accelerate FILE, or accelerate launch --config_file FILE"
_DEVICE = "accelerate chooses the device; with CUDA_VISIBLE_DEVICES set to nothing it is the CPU"

RESERVED = {
    "output_dir": "the stage writes to output_dir/name/STAGE; output_dir: stands at the top of the YAML",
    "seed": "seed: stands at the top of the YAML, one for all stages",
    "data_seed": "seed: stands at the top of the YAML, one for all stages",
    "model_init_kwargs": "model: says what is loaded, and how",
    "resume_from_checkpoint": "an interrupted stage goes on from its last checkpoint by itself",
    "trust_remote_code": "no code from the hub is run",
    "push_to_hub": _PUSH, "hub_model_id": _PUSH, "hub_strategy": _PUSH, "hub_token": _PUSH, "hub_private_repo": _PUSH,
    "hub_always_push": _PUSH, "hub_revision": _PUSH,
    "chat_template_path": "model.chat_template names a file with the template",
    "eos_token": "model.eos_token names it, for all stages",
    "pad_token": "model.pad_token names it, for all stages",
    "assistant_only_loss": "the loss is on the assistant's turns alone in any case",
    "completion_only_loss": "the loss is on replies alone; format: text of data.demonstrations learns every token",
    "dataset_text_field": _DATA, "dataset_kwargs": _DATA,
    "fsdp": _SHARDING, "fsdp_config": _SHARDING,
    "use_cpu": _DEVICE, "local_rank": _DEVICE,
    "do_train": "a stage trains", "do_predict": "the evaluate stage compares replies",
}  # fmt: skip
"""Field that the project settles for every stage, or that would change nothing: what to do instead."""

_ENUMERATIONS = {
    "IntervalStrategy": "transformers/trainer_utils.py", "SaveStrategy": "transformers/trainer_utils.py",
    "SchedulerType": "transformers/trainer_utils.py", "OptimizerNames": "transformers/training_args.py",
}  # fmt: skip
"""Types of fields that are written as one of a library's words."""

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "dict": (dict,),
    "list": (list, str),  # a single word stands for a list of it
}  # fmt: skip


def trained_stages() -> list[str]:
    """The stages that have a trainer, and so may stand under `stages:`."""
    return [name for name, stage in stages().items() if stage.trainer]


def _classes(stage: str) -> list[tuple[str, str]]:
    """Source file and name of the classes, base first, whose annotated fields a stage takes."""
    both = (spec.split(":") for spec in stage_of(stage).trainer)
    return [(f"{module.replace('.', '/')}.py", name) for module, name in both]


@functools.cache
def trainer_fields(stage: str) -> dict[str, str]:
    """Field name -> annotation (as text) of a stage's trainer config."""
    fields: dict[str, str] = {}
    for file, class_name in _classes(stage):
        fields.update(_class_fields(file, class_name))
    return {name: kind for name, kind in fields.items() if name not in RESERVED and not name.startswith("_")}


@functools.cache
def class_defaults(stage: str) -> dict[str, Any]:
    """Field name -> default of a stage's trainer config, where its source has the value itself."""
    values: dict[str, Any] = {}
    for file, class_name in _classes(stage):
        for node in _body(file, class_name):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
                continue
            given = node.value
            if isinstance(given, ast.Call):
                given = next((word.value for word in given.keywords if word.arg == "default"), given)
            values.pop(node.target.id, None)
            with contextlib.suppress(ValueError):
                values[node.target.id] = ast.literal_eval(given)
    return values


def fields_by_class(stage: str) -> dict[str, list[str]]:
    """Importable name of each class, base first -> the fields that it adds to those a stage takes."""
    known = list(trainer_fields(stage))
    added: dict[str, list[str]] = {}
    for file, class_name in _classes(stage):
        package, _, module = file.removesuffix(".py").partition("/")
        name = class_name if package == "transformers" else f"{module.replace('/', '.')}.{class_name}"
        added[f"{package}.{name}"] = [field for field in _class_fields(file, class_name) if field in known]
        known = [field for field in known if field not in added[f"{package}.{name}"]]
    return {name: fields for name, fields in added.items() if fields}


@functools.cache
def _class_fields(file: str, class_name: str) -> dict[str, str]:
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _body(file, class_name)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@functools.cache
def _module(file: str) -> ast.Module:
    """The source of a module of an installed package, parsed and not run."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)  # a top-level name: nothing is imported
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    path = Path(spec.submodule_search_locations[0]) / rest
    if not path.is_file():
        raise library_moved(package, f"there is no file {file}")
    return ast.parse(path.read_text(encoding="utf-8"))


def _body(file: str, class_name: str) -> list[ast.stmt]:
    """The statements of a class.

    Raises:
        UserError: The file has no such class.
    """
    for node in _module(file).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return node.body
    raise library_moved(file.partition("/")[0], f"there is no class {class_name} in {file}")


@functools.cache
def _words(annotation: str) -> tuple[str, ...]:
    """The words that a field of this annotation takes, where one of its types is an enumeration."""
    names = _kinds(annotation) & set(_ENUMERATIONS)
    return tuple(
        node.value.value
        for name in names
        for node in _body(_ENUMERATIONS[name], name)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


@functools.cache
def _reporters() -> tuple[str, ...]:
    """The names that `report_to` takes."""
    file, table = "transformers/integrations/integration_utils.py", "INTEGRATION_TO_CALLBACK"
    for node in _module(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table and isinstance(node.value, ast.Dict):
            return ("all", "none", *(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)))
    raise library_moved("transformers", f"there is no table {table} in {file}")


def reporters_problem(given: str | list[str] | None) -> str | None:
    """What is wrong with words of `report_to`, or None."""
    named = [given] if isinstance(given, str) else given or []
    return next((why for name in named if (why := ranges.problem(name, None, _reporters()))), None)


@functools.cache
def _estimators() -> tuple[str, ...]:
    """The names that `advantage` takes: the functions under `@estimator(…)`."""
    return tuple(
        node.name
        for node in _module("rlhf/objectives/advantages.py").body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(given).startswith("estimator(") for given in node.decorator_list)
    )


def problem(stage: str, name: str, value: Any) -> str | None:
    """What is wrong with the value of a field of a stage's trainer, if it can be said without importing; else None."""
    annotation = trainer_fields(stage)[name]
    if why := type_problem(value, annotation):
        return why
    choices = {"report_to": _reporters, "advantage": _estimators}.get(name, lambda: _words(annotation))()
    return range_problem(stage, name, value, choices)


def range_problem(stage: str, name: str, value: Any, choices: tuple[str, ...] = ()) -> str | None:
    """What is wrong with a value of the right type, or None.

    Args:
        stage: Kind of stage.
        name: The field.
        value: What it is set to.
        choices: The words it takes, where neither the stage nor `ranges.CHOICES` has them.
    """
    declared = stage_of(stage)
    own = declared.intervals.get(name)
    interval = ranges.Interval.of(own) if own is not None else ranges.INTERVALS.get(name)
    return ranges.problem(value, interval, choices or declared.choices.get(name) or ranges.CHOICES.get(name, ()))


def unknown_field(stage: str, name: str, own: Iterable[str] = ()) -> str:
    """The words that follow the name of a field which a stage does not take.

    Args:
        stage: Kind of stage.
        name: The field.
        own: Names it takes besides its trainer's.
    """
    return RESERVED.get(name) or unknown_name(name, {*trainer_fields(stage), *own})


def _kinds(annotation: str) -> set[str]:
    return {kind.strip() for kind in annotation.strip("\"'").split("|")}


def type_problem(value: Any, annotation: str) -> str | None:
    """What is wrong with a value for a field of this annotation, if it can be said without importing; else None."""
    kinds = _kinds(annotation)
    if value is None:
        return None if "None" in kinds or "Optional" in annotation else f"must not be null (it is a {annotation})"
    allowed: tuple[type, ...] = ()
    words = []
    for kind in sorted(kinds - {"None"}):
        name = "str" if kind in _ENUMERATIONS else kind.partition("[")[0]
        if name not in _TYPES:
            return None
        allowed += _TYPES[name]
        words.append(name)
    wrong = not isinstance(value, allowed) or (isinstance(value, bool) and "bool" not in kinds)
    return f"expected {' or '.join(dict.fromkeys(words))}, not {shown(value)}" if wrong else None
