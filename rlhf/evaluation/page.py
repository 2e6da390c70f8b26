"""The contents of report.json -> a page: HTML that stands alone, and Markdown.

Replies are what a model wrote: they may hold markup. Everything is escaped by the template engine, and the page forbids
scripts and outside resources besides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from rlhf.evaluation import charts, tables, words
from rlhf.evaluation.words import Report

_TONES = {"better": "better", "worse": "worse", "no difference": "same"}


def render_html(report: Report, shown: int = 12) -> str:
    """The report as one HTML file that loads nothing.

    Args:
        report: From `report.build_report`.
        shown: Prompts whose replies are in view; the others are folded away.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf.evaluation"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(words=words, tables=tables, charts=charts)
    policies = [entry["policy"] for entry in report["policies"]]
    prompts = [_prompt_view(row, policies) for row in report["samples"]]
    return environment.get_template("report.html").render(
        report=report,
        statements=words.statements(report),
        notices=words.notices(report),
        standfirst=standfirst(report),
        origin=list(_origin(report)),
        forests=list(_forests(report)),
        quantities=list(_quantities(report)),
        stages=[_stage_view(name, report) for name in report["stages"]],
        shown=prompts[:shown],
        folded=prompts[shown:],
        policies=policies,
        versions=_versions(report),
        data=list(_fingerprints(report)),
        configs={name: _pretty(entry.get("config")) for name, entry in report["provenance"].items()},
    )


def render_markdown(report: Report) -> str:
    """The verdicts and tables of a report as Markdown, without charts and replies."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf.evaluation"), autoescape=False, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(words=words, tables=tables)
    return environment.get_template("report.md").render(
        report=report, standfirst=standfirst(report), versions=_versions(report)
    )


def standfirst(report: Report) -> str:
    """How the verdicts were reached, in a sentence or two."""
    evaluation = report["evaluation"]
    if not evaluation:
        return "Policies have not been compared yet: the evaluate stage has not run."
    samples = f", {evaluation['samples']} sampled from each policy" if evaluation["samples"] else ""
    temperature = evaluation["temperature"]
    heat = "" if temperature is None else " greedily" if temperature == 0 else f" at temperature {temperature:g}"
    longest = evaluation["max_new_tokens"]
    limit = f", at most {words.count(longest, 'token')} each" if longest else ""
    return (
        f"Replies to {words.count(evaluation['prompts'], 'prompt')} kept out of training{samples}{heat}{limit}. "
        "Brackets are 95% intervals, by bootstrap over prompts."
    )


def _origin(report: Report) -> Iterator[str]:
    """What the run is made of, for the line under its name."""
    provenance = report["provenance"].values()
    lineages = [entry.get("lineage") or {} for entry in provenance]
    bases = dict.fromkeys(str(lineage["base"]) for lineage in lineages if lineage.get("base"))
    seeds = dict.fromkeys(str(entry["seed"]) for entry in provenance if entry.get("seed") is not None)
    times = [entry["wall_time_s"] for entry in provenance if entry.get("wall_time_s")]
    yield f"base model {', '.join(bases)}" if bases else "RLHF run"
    yield ", ".join(words.label(name) for name in report["stages"])
    if seeds:
        yield f"seed {', '.join(seeds)}"
    if times:
        yield f"{words.duration(sum(times))} in all"
    yield report["created"][:10]


def _forests(report: Report) -> Iterator[tuple[str, charts.StripPanel | None, charts.StripPanel | None]]:
    """(judge, mean differences, win rates)."""
    for judge in (report["evaluation"] or {}).get("judges", []):
        rows = [row for row in report["comparisons"] if row["judge"] == judge]

        def strips(value: str, interval: str, rows: Sequence[Mapping[str, Any]] = rows) -> list[tuple[str, dict, str]]:
            return [
                (
                    f"{words.label(row['policy'])} vs {words.label(row['baseline'])}",
                    {"mean": row[value], "ci": row[interval]},
                    _TONES[row["verdict"]],
                )
                for row in rows
            ]

        yield (
            judge,
            charts.strip_panel(
                "Mean difference",
                strips("mean_difference", "difference_ci"),
                lambda mean, interval: words.estimate(mean, interval, signed=True),
                zero=0.0,
            ),
            charts.strip_panel(
                "Win rate", strips("win_rate", "win_rate_ci"), words.percent, zero=0.5, tick=words.percent
            ),
        )


def _quantities(report: Report) -> Iterator[charts.StripPanel]:
    """What each policy is like: scores by judge, length, endings, KL."""
    policies = report["policies"]

    def strips(entry_of: Any) -> list[tuple[str, Mapping[str, Any], str]]:
        return [(words.label(entry["policy"]), entry_of(entry), f"p{i % 6}") for i, entry in enumerate(policies)]

    one_digit = lambda mean, interval: words.estimate(mean, interval, digits=1)  # noqa: E731
    panels = [
        charts.strip_panel(f"Score: {judge}", strips(lambda entry, judge=judge: entry["scores"][judge]), words.estimate)
        for judge in (policies[0]["scores"] if policies else ())
    ]
    kl = [(f"{name} to {words.label(entry['kl_reference'])}" if entry["kl_reference"] else name, one, tone)
          for entry, (name, one, tone) in zip(policies, strips(lambda entry: entry["kl"]), strict=True)]  # fmt: skip
    panels += [
        charts.strip_panel("Length", strips(lambda entry: entry["length"]), one_digit, note="tokens"),
        charts.strip_panel("KL to reference", kl, words.estimate, note="nats a reply"),
        charts.strip_panel(
            "Ended by itself", strips(lambda entry: entry["finished"]), words.percent, tick=words.percent
        ),
    ]
    yield from (panel for panel in panels if panel)


def _stage_view(name: str, report: Report) -> dict[str, Any]:
    metrics, provenance = report["stages"][name], report["provenance"][name]
    facts = words.stage_facts(name, metrics)
    facts.append(words.duration(provenance.get("wall_time_s")) if provenance.get("wall_time_s") else "")
    return {
        "name": name,
        "facts": [fact for fact in facts if fact],
        "ledger": metrics.get("rows", {}),
        "charts": charts.stage_charts(report["curves"].get(name, {})),
    }


def _prompt_view(row: Mapping[str, Any], policies: Sequence[str]) -> dict[str, Any]:
    """A prompt with the replies of each policy; the highest score of each judge is marked."""
    columns = [(policy, row["replies"].get(policy, [])) for policy in policies]
    first = [samples[0].get("scores") or {} for _, samples in columns if samples]
    best = {}
    for judge in {judge for scores in first for judge in scores}:
        known = [scores[judge] for scores in first if scores.get(judge) is not None]
        best[judge] = max(known) if len(set(known)) > 1 else None
    prompt = row["prompt"]
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"index": row["index"], "turns": turns, "columns": columns, "best": best}


def _versions(report: Report) -> str:
    """`torch 2.13.0, trl 1.16.0`; several versions of one package, where stages differ, with a slash."""
    found: dict[str, list[str]] = {}
    for entry in report["provenance"].values():
        for package, version in (entry.get("versions") or {}).items():
            found.setdefault(package, [])
            if str(version) not in found[package]:
                found[package].append(str(version))
    found.pop("rlhf", None)  # said beside it
    return ", ".join(f"{package} {' / '.join(versions)}" for package, versions in found.items())


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
