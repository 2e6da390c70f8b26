"""No version that we allow is known to be vulnerable, as far as an advisory concerns what is done with the package."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.audit import summary

FIXED = {
    "h11": ("0.16.0", "CVE-2025-43859: requests smuggled past a proxy"),
    "jinja2": ("3.1.6", "CVE-2025-27516: chat templates leave the sandbox"),
    "nltk": ("3.10.4", "CVE-2026-62383 and others before it: files outside its data"),
    "pillow": ("12.3.0", "CVE-2026-25990, CVE-2026-40192 and others: crafted images"),
    "pyarrow": ("23.0.1", "CVE-2026-25087: crafted Arrow files"),
    "starlette": ("1.3.1", "CVE-2026-48710, CVE-2026-54282, CVE-2026-54283: Host header, request.url, limits of forms"),
    "torch": ("2.10.0", "CVE-2025-32434, CVE-2026-24747: torch.load(weights_only=True) runs code"),
    "tqdm": ("4.66.3", "CVE-2024-34062: arguments of its command are evaluated"),
    "transformers": ("5.10.0", "CVE-2026-4372, CVE-2026-5241, CVE-2026-9856: code from a config, files of a template"),
}
"""The first version without the flaw, and the flaw."""


@pytest.fixture(scope="module")
def allowed(root) -> list[Requirement]:
    """What pyproject.toml asks for, in every extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


@pytest.mark.parametrize("package", FIXED)
def test_the_oldest_version_allowed_has_what_was_mended(root, allowed, package):
    fixed = Version(FIXED[package][0])
    floors = [
        Version(bound.version)
        for requirement in allowed
        if requirement.name.lower() == package
        for bound in requirement.specifier
        if bound.operator == ">="
    ]
    assert floors
    assert min(floors) >= fixed
    pins = (line.partition("==") for line in (root / "constraints.txt").read_text().splitlines())
    (pinned,) = (Version(version) for name, _, version in pins if name.lower() == package)
    assert pinned >= fixed


def test_every_extra_that_brings_a_package_has_its_floor(root):
    """`uvicorn` brings h11, and `rouge-score` nltk."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, lines in extras.items():
        names = {Requirement(line).name for line in lines}
        for package, brought in (("uvicorn", "h11"), ("rouge-score", "nltk")):
            assert package not in names or brought in names, name


PACKAGE = {"name": "jinja2", "version": "3.1.5"}
FOUND = {**PACKAGE, "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.6"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        (None, 0, "audit skipped"),
        ([UNKNOWN], 0, "audit skipped"),
        ([{**PACKAGE, "vulns": []}, UNKNOWN], 0, "1 packages audited, 0 known vulnerabilities; 1 it does not know"),
        ([FOUND], 1, "jinja2 3.1.5: PYSEC-1, fixed in 3.1.6"),
    ],
)
def test_an_audit_that_knows_nothing_is_no_clean_one(packages, code, said):
    lines, given = summary(None if packages is None else {"dependencies": packages})
    assert given == code
    assert any(said in line for line in lines)


def test_ci_audits(root: Path):
    assert "make audit" in (root / ".ci/run").read_text()
