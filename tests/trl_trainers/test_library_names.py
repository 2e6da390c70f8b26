"""No library name is relied on that is not in the table, and one that has moved is named before anything trains."""

import ast
import functools
import importlib
import inspect
import re
import sys
import textwrap
import types
from dataclasses import replace
from pathlib import Path

import pytest
import trl
from transformers import PreTrainedModel, TextStreamer, TrainerCallback, TrainingArguments

from rlhf.config import trainer_fields
from rlhf.config.versions import TESTED
from rlhf.errors import UserError
from rlhf.pipeline.execute import attempt, prepare_stage
from rlhf.trl_trainers.library_names import LibraryName, _names_in, all_names, check_library_names
from rlhf.workflow import stages
from tests.support.projects import make_project, pairs

LIBRARIES = ("accelerate", "peft", "transformers", "trl")
NAMES = all_names()
TABLE = {name.path.rpartition(":")[2].rpartition(".")[2] for name in NAMES}
IMPORTED = {tuple(name.path.split(":")) for name in NAMES}
DOCUMENTED = {"transformers.utils", "transformers.modeling_outputs", "accelerate.utils"}
"""Modules below the top of a library whose names are part of its documented interface."""
PYTHON = {"_asdict", "_exit", "_replace"}
ADDED = {"_fold", "_fused_forward"}
"""Names of ours that are set on a library's objects."""
FILES = {"_type"}
"""Keys of files that a library writes."""


@functools.cache
def sources(root) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted((root / "rlhf").rglob("*.py"))}


def private(name) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_[a-z]\w*", name) is not None


def own_names(tree) -> set[str]:
    """Private names that a file defines: functions, classes, variables, and attributes of `self`."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def test_every_private_name_of_another_object_is_in_the_table(root):
    unknown = []
    for path, tree in sources(root).items():
        known = own_names(tree) | TABLE | PYTHON | ADDED | FILES
        for node in ast.walk(tree):
            used = []
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
                used = [node.attr]
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
                "getattr", "setattr", "hasattr", "delattr", "get", "pop",
            ):  # fmt: skip
                used = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            unknown += [f"{path.name}:{node.lineno} {name}" for name in used if private(name) and name not in known]
    assert not unknown


def test_every_import_from_below_the_top_of_a_library_is_in_the_table(root):
    unknown = []
    for path, tree in sources(root).items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None or "." not in node.module:
                continue
            if node.module.partition(".")[0] not in LIBRARIES or node.module in DOCUMENTED:
                continue
            for alias in node.names:
                listed = {(node.module, alias.name), (f"{node.module}.{alias.name}", alias.name)} & IMPORTED
                whole = any(module == f"{node.module}.{alias.name}" for module, _ in IMPORTED)
                inside = any(module == node.module and name.startswith(f"{alias.name}.") for module, name in IMPORTED)
                if not (listed or whole or inside):
                    unknown.append(f"{path.name}: {node.module}.{alias.name}")
    assert not unknown


def own_classes(root) -> set[type]:
    """Classes of the package that derive from one of a library's."""
    found = set()
    for path in sources(root):
        module = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__.startswith("rlhf.") and library_bases(kind):
                found.add(kind)
    return found


def library_bases(kind) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]


def test_every_method_that_is_overridden_is_in_the_table(root):
    unknown = []
    for kind in own_classes(root):
        if issubclass(kind, TrainerCallback | TextStreamer | TrainingArguments):  # made to be overridden, or fields
            continue
        for base in kind.__mro__:
            if not base.__module__.startswith("rlhf."):
                continue
            for name, member in vars(base).items():
                overrides = any(name in vars(library) for library in library_bases(kind))
                if inspect.isfunction(member) and overrides and not name.startswith("__") and name not in TABLE:
                    unknown.append(f"{kind.__name__}.{name}")
    assert not unknown


def test_every_private_attribute_that_a_base_class_has_too_is_in_the_table(root):
    """One that is set by chance under a name that the library uses, too, would break it."""
    unknown = []
    for kind in own_classes(root):
        theirs = {name for base in library_bases(kind)[:1] for name in _names_in(base) if private(name)}
        for base in kind.__mro__:
            if base.__module__.startswith("rlhf."):
                tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
                used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
                unknown += [f"{kind.__name__}.{name}" for name in used & theirs - TABLE]
    assert not unknown


def test_names_that_are_added_collide_with_none_of_the_library():
    assert not [name for name in ADDED if hasattr(PreTrainedModel, name) or name in _names_in(PreTrainedModel)]


def test_the_table_is_true_of_the_installed_libraries():
    check_library_names()
    assert len({name.path for name in NAMES}) == len(NAMES)


def test_the_versions_are_those_of_the_constraints(root):
    pinned = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {library: pinned[library] for library in LIBRARIES} == TESTED


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (LibraryName("trl.gone:Trainer", ""), "there is no module trl.gone"),
        (LibraryName("trl:Gone.log", ""), "there is no trl.Gone"),
        (LibraryName("trl:DPOTrainer.gone", ""), "there is no trl.DPOTrainer.gone"),
        (LibraryName("trl:DPOTrainer.gone", "", instance=True), "objects of DPOTrainer have no gone"),
        (LibraryName("trl:DPOTrainer.log", "", "self logs"), "DPOTrainer.log takes (self logs start_time) and not"),
    ],
)
def test_what_has_moved_is_named(name, problem):
    with pytest.raises(UserError, match=re.escape(problem)) as error:
        check_library_names([name])
    for part in (f"trl {trl.__version__}: ", f"pip install trl=={TESTED['trl']}"):
        assert part in str(error.value)


@pytest.mark.parametrize("raised", [RuntimeError, ImportError])
def test_a_name_that_cannot_be_imported_has_moved(monkeypatch, raised):
    """A library that imports its modules when they are asked for may only fail then."""

    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise raised("it failed") from ImportError("cannot import 'KTOConfig'")

    monkeypatch.setitem(sys.modules, "trl.lazy", Lazy("trl.lazy"))
    with pytest.raises(UserError, match=r"trl\.lazy\.KTOTrainer\.log cannot be imported: cannot import 'KTOConfig'"):
        check_library_names([LibraryName("trl.lazy:KTOTrainer.log", "")])


def test_a_moved_signature_ends_a_run_before_anything_is_read(tmp_path, tiny_llama, monkeypatch):
    project = make_project(tmp_path, tiny_llama, pairs(), stages={"dpo": {"max_steps": 1}})
    monkeypatch.setattr(trl.DPOTrainer, "_prepare_dataset", lambda self, dataset: dataset)
    with pytest.raises(UserError, match=re.escape("DPOTrainer._prepare_dataset takes (self dataset)")):
        attempt(prepare_stage, project, "dpo")
    assert not (project.run_dir / ".dpo.partial").exists()


@pytest.mark.parametrize(
    ("stage", "entry"),
    [("dpo", "trl.trainer.dpo_config:GoneConfig"), ("sft", "trl.trainer.gone_config:SFTConfig")],
)
def test_a_moved_config_class_is_named_by_every_command(monkeypatch, stage, entry):
    monkeypatch.setitem(stages(), stage, replace(stages()[stage], trainer=(entry,)))
    file = entry.partition(":")[0].replace(".", "/")
    trainer_fields.trainer_fields.cache_clear()
    try:
        with pytest.raises(UserError, match=rf"^trl {re.escape(trl.__version__)}: there is no .*{file}"):
            trainer_fields.trainer_fields(stage)
    finally:
        trainer_fields.trainer_fields.cache_clear()
