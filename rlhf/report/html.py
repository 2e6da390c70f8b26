"""The contents of report.json -> a page: HTML that stands alone, and Markdown.

Replies are what a model wrote: they may hold markup. Everything is escaped by the template engine, and the page forbids
scripts and outside resources besides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2

from rlhf.evaluation import formatting
from rlhf.report import charts, classes, diagrams, rounds, schema, sections, sentences, tables, unjudged
from rlhf.report.caveats import caveats
from rlhf.report.names import Names
from rlhf.report.schema import Report
from rlhf.workflow import kind_of


def render_html(report: Report, shown: int = 12) -> str:
    """The report as one HTML file that loads nothing.

    Args:
        report: From `report.build_report`.
        shown: Prompts whose replies are in view; the others are folded away.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    names = Names.of(report)
    environment.globals.update(
        formatting=formatting, names=names, sentences=sentences, tables=tables, charts=charts, diagrams=diagrams,
        tones=sections.TONES, rounds=rounds, confidence=sections.confidence, answers_only=schema.answers_only(report),
    )  # fmt: skip
    policies = [entry["policy"] for entry in report["policies"]]
    columns = [name for name in policies if name == kind_of(name)]  # of several seeds the first
    prompts = [sections.prompt_view(row, columns, schema.parents(report)) for row in report["samples"]]
    return environment.get_template("report.html").render(
        report=report,
        statements=sentences.statements(report),
        caveats=caveats(report),
        standfirst=standfirst(report),
        origin=list(_origin(report)),
        unjudged=schema.unjudged(report),
        measured=unjudged.panels(report) if schema.unjudged(report) else [],
        forests=list(sections.forests(report)),
        groups=sections.groups(report),
        quantities=list(sections.quantities(report)),
        classes=classes.view(report),
        classifier_table=classes.classifier_table(report),
        attributions=sections.attributions(report),
        gates=list(sections.gates(report)),
        gate_policies=[gate["policy"] for _, gate in schema.gates(report)],
        tracked=list(sections.tracked(report)),
        stages=list(sections.stage_views(report)),
        shown=prompts[:shown],
        folded=prompts[shown:],
        versions=_versions(report),
        datasets=[
            (name, stage) for name, stage in report["stages"].items() if stage.get("rows") or stage.get("findings")
        ],
        fingerprints=list(_fingerprints(report)),
        configs={name: _pretty(entry.get("config")) for name, entry in report["provenance"].items()},
    )


def render_markdown(report: Report) -> str:
    """The verdicts and tables of a report as Markdown, without charts and replies."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf.report"), autoescape=False, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(
        names=Names.of(report), tables=tables, rounds=rounds, answers_only=schema.answers_only(report)
    )
    group_by = report["evaluation"]["group_by"] if report["evaluation"] else None
    further = [
        ("Over several seeds", tables.seed_table(report).markdown()),
        (f"By {group_by}", tables.group_table(report).markdown()),
    ]
    return environment.get_template("report.md").render(
        report=report, statements=sentences.statements(report), caveats=caveats(report),
        gated=schema.gated_models(report), standfirst=standfirst(report), versions=_versions(report), further=further,
        classifiers=classes.classifier_table(report).markdown(), views=classes.view(report),
        attributions=sections.attributions(report), unjudged=schema.unjudged(report),
    )  # fmt: skip


def standfirst(report: Report) -> str:
    """How the verdicts were reached, in a sentence or two."""
    evaluation = report["evaluation"]
    if not evaluation:
        return "Policies have not been compared yet: `rlhf evaluate` does that."
    over = "Brackets are 95% intervals over prompts."
    prompts = f"{formatting.count(evaluation['prompts'], 'prompt')} kept out of training"
    if schema.answers_only(report):
        return f"Each policy's likeliest answer to {prompts}. {over}"
    samples = f", {evaluation['samples']} sampled from each policy" if evaluation["samples"] else ""
    temperature = evaluation["temperature"]
    heat = "" if temperature is None else " greedily" if temperature == 0 else f" at temperature {temperature:g}"
    longest = evaluation["max_new_tokens"]
    limit = f", at most {formatting.count(longest, 'token')} each" if longest else ""
    judged = " Nothing judged them." if schema.unjudged(report) else ""
    return f"Replies to {prompts}{samples}{heat}{limit}.{judged} {over}"


def _origin(report: Report) -> Iterator[str]:
    """What the run is made of, for the line under its name."""
    provenance = report["provenance"].values()
    lineages = [entry.get("lineage") or {} for entry in provenance]
    bases = dict.fromkeys(str(lineage["base"]) for lineage in lineages if lineage.get("base"))
    seeds = dict.fromkeys(str(entry["seed"]) for entry in provenance if entry.get("seed") is not None)
    times = [entry["wall_time_s"] for entry in provenance if entry.get("wall_time_s")]
    yield f"base model {', '.join(bases)}" if bases else "RLHF run"
    names = Names.of(report)
    yield ", ".join(names.label(name) for name in report["stages"])
    if seeds:
        yield f"seed {', '.join(seeds)}"
    if times:
        yield f"{formatting.duration(sum(times))} in all"
    yield report["created"][:10]


def _versions(report: Report) -> str:
    """`torch 2.13.0, trl 1.16.0`; several versions of one package, where stages differ, with a slash."""
    by_package: dict[str, list[str]] = {}
    for entry in report["provenance"].values():
        for package, version in (entry.get("versions") or {}).items():
            by_package.setdefault(package, [])
            if str(version) not in by_package[package]:
                by_package[package].append(str(version))
    by_package.pop("rlhf", None)  # said beside it
    return ", ".join(f"{package} {' / '.join(versions)}" for package, versions in by_package.items())


def _fingerprints(report: Report) -> Iterator[tuple[str, str, str]]:
    """(stage, what, value) of every data fingerprint."""

    def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from leaves(item, f"{path} {key}".strip())
        elif isinstance(value, list):
            for item in value:
                yield from leaves(item, path)
        else:
            yield path, str(value)

    for name, entry in report["provenance"].items():
        for path, value in leaves(entry.get("data") or {}, ""):
            yield name, path, value


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) if value else ""
