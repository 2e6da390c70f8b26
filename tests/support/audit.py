"""Says what pip-audit found, for `make audit`: exit code 1 where a pinned package is known to be vulnerable.

`python -m tests.support.audit FILE`, with the JSON that pip-audit wrote. Needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def summary(found: dict[str, Any] | None) -> tuple[list[str], int]:
    """The lines to print, and the exit code.

    Args:
        found: What pip-audit wrote; None where it wrote nothing.
    """
    packages = found["dependencies"] if found else []
    known = [package for package in packages if "skip_reason" not in package]
    lines = []
    for package in known:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            lines.append(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    if not known:
        return ["audit skipped: the advisory service cannot be reached, or knows none of the packages"], 0
    unknown = f"; {len(packages) - len(known)} it does not know" if len(known) < len(packages) else ""
    lines.append(f"{len(known)} packages audited, {len(lines)} known vulnerabilities{unknown}")
    return lines, int(len(lines) > 1)


def main() -> int:
    """Print the summary of the file that is named on the command line."""
    path = Path(sys.argv[1])
    lines, code = summary(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
