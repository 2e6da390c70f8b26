"""Leaves all CUDA libraries but one out of bitsandbytes' wheel, which makes it small enough to carry.

usage: python benchmarks/gpu_wheel.py FOLDER
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

KEPT = ("cuda130.so", "cpu.so")
"""How the libraries end that stay: of CUDA 13 and of the CPU."""


def reduce_wheel(wheel: Path) -> None:
    """Write a wheel again without the libraries that are not needed."""
    reduced = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(reduced, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".so") or entry.filename.endswith(KEPT):
                new.writestr(entry, old.read(entry))
    reduced.replace(wheel)


if __name__ == "__main__":
    for file in Path(sys.argv[1]).glob("bitsandbytes-*.whl"):
        reduce_wheel(file)
