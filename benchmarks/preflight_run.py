"""One stage of one setting of preflight.py, in a process of its own: what it took, as JSON.

usage: preflight_run.py PROJECT.yaml STAGE [--steps]       --steps: two optimizer steps alone, as `rlhf check --measure`
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

from rlhf.config.load import load_project
from rlhf.pipeline.execute import quiet_environment
from rlhf.preflight.measure import measured_project, read_measured, run_measured


def main() -> None:
    """Run it."""
    file, stage, *options = sys.argv[1:]
    project = load_project(Path(file))
    if options:
        project = dataclasses.replace(measured_project(project), output_dir=f"{project.output_dir}-steps")
    quiet_environment()
    import rlhf.stages  # noqa: F401

    start = time.perf_counter()
    run_measured(project, stage)
    result = dataclasses.asdict(read_measured(project, stage))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    resident = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    high = int(resident.split()[1]) * 1024.0
    print(json.dumps({**result, "resident": high, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
