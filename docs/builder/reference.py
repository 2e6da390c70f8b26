"""The pages under Reference: settings, commands, report.json and functions, all from the source."""

from __future__ import annotations

import re
from importlib.metadata import version

import griffe
import typer
from fields import (
    class_of,
    classes_in,
    contents_table,
    fields_of,
    interval_text,
    package,
    sentence,
    settings_table,
    table,
    type_text,
    with_limits,
    yaml_text,
)  # fmt: skip

from rlhf.config import ranges, trainer_fields
from rlhf.training.defaults import DEFAULTS
from rlhf.workflow import stage_of

_TRL = f"https://huggingface.co/docs/trl/v{version('trl')}/en/"
_TRANSFORMERS = f"https://huggingface.co/docs/transformers/v{version('transformers')}/en/"


def pages() -> dict[str, str]:
    """The path of each page below `reference/`, and its Markdown."""
    written = {
        "project.md": project_page(), "stages.md": stages_page(), "commands.md": commands_page(),
        "report.md": report_page(), "python.md": python_page(),
        **{f"python/{name}.md": room_page(name) for name in rooms()},
    }  # fmt: skip
    return {"index.md": index_page(), **written}


def index_page() -> str:
    """What is where."""
    return (
        "# Reference\n\nThese pages are made from the source whenever the site is built.\n\n"
        "* [Settings of a project](project.md): every section of the YAML.\n"
        "* [Settings of the stages](stages.md): what stands under each stage.\n"
        "* [Commands](commands.md): `rlhf` and its options.\n"
        "* [report.json](report.md): every field of a run's report.\n"
        "* [Python](python.md): modules, classes and functions.\n"
    )


def _sections(path: str, owner: griffe.Class) -> list[tuple[str, griffe.Class]]:
    """The path in the YAML and the class of a section, and of all that are in it."""
    found = [(path, owner)]
    for field in fields_of(owner):
        outer = type_text(field.annotation, lambda inner: "")
        for inner in classes_in(field.annotation):
            name = f"{field.name}.NAME" if "mapping" in outer else f"{field.name}[]" if "list" in outer else field.name
            found += _sections(f"{path}.{name}" if path else name, inner)
    return found


def project_page() -> str:
    """The sections of the YAML, one table each."""
    places: dict[str, list[str]] = {}
    for path, owner in _sections("", class_of("rlhf.config.project.ProjectConfig")):
        places.setdefault(owner.path, []).append(path)
    text = (
        "# Settings of a project\n\nA project is one YAML file. [The project file](../project.md) explains it; this "
        "page lists every setting. Intervals are written as in mathematics: `[0, 1)` has 0 and not 1.\n"
    )
    for name, paths in places.items():
        owner = class_of(name)
        heading = ", ".join(f"`{path}`" for path in paths[:3]) if paths[0] else "The top of the file"
        more = f" The same settings stand under {', '.join(f'`{path}`' for path in paths[3:])}." if paths[3:] else ""
        text += f"\n## {heading} {{ #{owner.name} }}\n\n{sentence(owner)}{more}\n\n"
        text += settings_table(owner, lambda inner: f"[section](#{inner.name})")
    return text


def stages_page() -> str:
    """The settings of each stage: its own with their docstrings, those of a library by name."""
    text = (
        "# Settings of the stages\n\nUnder `stages:` every stage takes [what all stages have]"
        "(project.md#StageConfig) and the fields of its trainer's config. Where the YAML is silent, the defaults on "
        "this page hold, which are not always the library's.\n"
    )
    for stage in trainer_fields.trained_stages():
        declared = stage_of(stage)
        text += f"\n## `{stage}`\n\n{(declared.method or declared.label).rstrip('.')}.\n"
        if declared.follows:
            first = ", ".join(f"`{name}`" for name in declared.follows)
            text += f"\nStarts from the first of these that the project has: {first}; else the base.\n"
        for name in trainer_fields.fields_by_class(stage):
            if name == "transformers.TrainingArguments":
                continue
            text += f"\n### {name.rpartition('.')[2]} {{ #{stage}-{name.rpartition('.')[2]} }}\n\n"
            text += _own_table(stage, name) if name.startswith("rlhf.") else _library_table(stage, name)
        if "transformers.TrainingArguments" in trainer_fields.fields_by_class(stage):
            differs = _differing(stage)
            text += "\nIt also takes the fields of [TrainingArguments](#trainingarguments)"
            text += f", with {differs}.\n" if differs else ".\n"
    text += "\n## TrainingArguments { #trainingarguments }\n\n"
    text += _library_table("sft", "transformers.TrainingArguments", DEFAULTS)
    text += (
        "\n## Fields that are refused\n\nThese fields of the libraries stand elsewhere, or would change nothing.\n\n"
    )
    return text + table(
        ["Field", "Instead"], [[f"`{name}`", reason + "."] for name, reason in trainer_fields.RESERVED.items()]
    )


def _differing(stage: str) -> str:
    """The defaults of a stage that differ from those of all stages, of what every trainer has."""
    every = set(trainer_fields.fields_by_class("sft")["transformers.TrainingArguments"])
    own = {name: value for name, value in stage_of(stage).defaults.items() if name in every}
    return ", ".join(f"`{name}: {yaml_text(repr(value))}`" for name, value in own.items())


def _limits(stage: str, name: str) -> str:
    """The interval or the words that a field takes."""
    declared = stage_of(stage)
    if name in declared.intervals:
        return f"in {interval_text(declared.intervals[name])}"
    if name in ranges.INTERVALS:
        return f"in {interval_text(ranges.INTERVALS[name])}"
    words = declared.choices.get(name) or ranges.CHOICES.get(name, ())
    return " or ".join(f"`{word}`" for word in words)


def _own_table(stage: str, name: str) -> str:
    return (
        sentence(class_of(name)) + "\n\n" + settings_table(class_of(name), _no_link, lambda each: _limits(stage, each))
    )


def _no_link(owner: griffe.Class) -> str:
    return f"`{owner.name}`"


def _library_table(stage: str, name: str, defaults: dict | None = None) -> str:
    """The fields of a library's class by name, with types and defaults; the library says what they do."""
    owner = name.rpartition(".")[2]
    page = f"{_TRANSFORMERS}main_classes/trainer#transformers.{owner}"
    if name.startswith("trl."):
        page = f"{_TRL}{name.split('.')[-2].removesuffix('_config')}_trainer#trl.{owner}"
    fields, silent = trainer_fields.trainer_fields(stage), trainer_fields.class_defaults(stage)
    silent = {**silent, **(defaults if defaults is not None else {**DEFAULTS, **stage_of(stage).defaults})}
    rows = []
    for field in trainer_fields.fields_by_class(stage)[name]:
        default = f"`{yaml_text(repr(silent[field]))}`" if field in silent else "the library's"
        takes = with_limits(type_text(fields[field], _no_link), _limits(stage, field))
        rows.append([f"`{field}`", takes, default])
    return f"[{name}]({page}) says what these do.\n\n" + table(["Field", "Takes", "Default"], rows)


def commands_page() -> str:
    """`rlhf --help` and that of each command, as typer writes them down."""
    from typer.cli import get_docs_for_click

    from rlhf.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rlhf", title="Commands")
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)  # each has a section of its own
    return text.replace("```console\n$ ", "```text\n")


def report_page() -> str:
    """The TypedDicts of report.json, from the whole report to its parts."""
    order = [class_of("rlhf.report.schema.Report")]
    for owner in order:
        for field in fields_of(owner):
            order += [inner for inner in classes_in(field.annotation) if inner.path not in {one.path for one in order}]
    link = lambda inner: f"[{inner.name}](#{inner.name.lower()})"  # noqa: E731
    text = "# report.json\n\n" + _first_paragraphs(class_of("rlhf.report.schema.Report").module) + "\n"
    for owner in order:
        text += f"\n## {owner.name} {{ #{owner.name.lower()} }}\n\n{sentence(owner)}\n\n{contents_table(owner, link)}"
    return text


def _first_paragraphs(module: griffe.Module) -> str:
    return module.docstring.value.partition("\n\n")[2] if module.docstring else ""


def rooms() -> list[str]:
    """The packages of the package, without the commands, which have a page of their own; `rlhf` for its own modules."""
    inner = [name for name, room in package().modules.items() if not room.is_alias and room.is_init_module]
    return ["rlhf", *sorted(name for name in inner if name != "cli" and _modules(package().modules[name]))]


def _modules(room: griffe.Module) -> list[griffe.Module]:
    """The modules of a package, and of those in it, that have a public function or class."""
    found = []
    for name, module in sorted(room.modules.items()):
        if name.startswith("__") or module.is_alias:  # one that is imported there
            continue
        if _is_public(module):
            found.append(module)
        found += _modules(module)
    return found


def _room(name: str) -> tuple[str, griffe.Module]:
    return (name, package()) if name == "rlhf" else (f"rlhf.{name}", package().modules[name])


def python_page() -> str:
    """The packages, each with its page."""
    rows = [[f"[{_room(name)[0]}](python/{name}.md)", sentence(_room(name)[1])] for name in rooms()]
    return (
        "# Python\n\nEvery public function, class and constant, by package. [The architecture](../architecture.md) "
        "says which package may import which.\n\n" + table(["Package", "What it has"], rows)
    )


def room_page(name: str) -> str:
    """The modules of a package, rendered by mkdocstrings."""
    path, room = _room(name)
    modules = _modules(room)
    if name == "rlhf":
        modules = [module for module in modules if module.parent is room and not module.is_init_module]
    elif _is_public(room):
        modules = [room, *modules]
    return f"# {path}\n\n{sentence(room)}\n" + "".join(f"\n::: {module.path}\n" for module in modules)


def _is_public(module: griffe.Module) -> bool:
    """Whether a module has a function or class for others."""
    return any(not name.startswith("_") for name in (*module.functions, *module.classes))
