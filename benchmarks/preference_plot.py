"""Draws what preference.py measured: docs/images/preference.png.

usage: python benchmarks/preference_plot.py          needs matplotlib
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib.pyplot as plt
from setting import ROOT

_RESULTS = ROOT / "benchmarks" / "results"
_SPEEDUPS = {
    "off": "all off",
    "head": "head",
    "fold": "fold",
    "buckets": "buckets",
    "fold+head": "fold, head",
    "ours": "all",
}
_SETTINGS = {
    "HH": "preference",
    "1 : 1": "preference-ratio-1",
    "2 : 1": "preference-ratio-2",
    "4 : 1": "preference-ratio-4",
}
_COLOURS = {"dpo": "#3b6fb6", "reward": "#d98032"}
_NAMES = {"dpo": "DPO", "reward": "reward model"}


def rows(name: str) -> dict[str, Any]:
    """The rows of a result file."""
    table: dict[str, Any] = json.loads((_RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return table


def bars(axes: Any, groups: dict[str, dict[str, float]], title: str) -> None:
    """Bars of a ratio, a colour for each kind, each with its number."""
    for number, (kind, values) in enumerate(groups.items()):
        where = [at + 0.4 * (number - 0.5) for at in range(len(values))]
        made = axes.bar(where, list(values.values()), 0.38, color=_COLOURS[kind], label=_NAMES[kind])
        labels = ["" if value != value else f"{value:.1f}" for value in values.values()]
        axes.bar_label(made, labels=labels, fontsize=8)
    axes.set_xticks(range(len(values)), list(values))
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw."""
    hh = rows("preference")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), constrained_layout=True)
    missing = {"speed_to_trl": float("nan"), "speed_to_trl-best": float("nan")}
    speedups = {
        kind: {label: hh.get(f"{kind}:{name}", missing)["speed_to_trl"] for name, label in _SPEEDUPS.items()}
        for kind in _COLOURS
    }
    bars(left, speedups, "Speed over TRL 1.16, Anthropic's HH: each speedup alone")
    left.set_ylabel("times as fast")
    left.legend(frameon=False, fontsize=9)
    best = {
        kind: {label: rows(name)[f"{kind}:ours"]["speed_to_trl-best"] for label, name in _SETTINGS.items()}
        for kind in _COLOURS
    }
    bars(right, best, "Over TRL at its best, by prompt : completion (tokens)")
    path = ROOT / "docs" / "images" / "preference.png"
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
