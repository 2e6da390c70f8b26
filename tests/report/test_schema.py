"""Every field of report.json, and of what else is printed as JSON, says what it is."""

import ast

import pytest


def undocumented(source):
    """`Class.field` of each field of a typed dictionary without a docstring below it."""
    for kind in ast.walk(ast.parse(source)):
        if not isinstance(kind, ast.ClassDef) or "TypedDict" not in map(ast.unparse, kind.bases):
            continue
        for field, below in zip(kind.body, [*kind.body[1:], None], strict=True):
            told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and not told:
                yield f"{kind.name}.{ast.unparse(field.target)}"


@pytest.mark.parametrize("folder", ["evaluation", "report", "export", "history", "environment"])
def test_each_field_has_its_sentence(root, folder):
    files = sorted((root / "rlhf" / folder).rglob("*.py"))
    assert [name for path in files for name in undocumented(path.read_text(encoding="utf-8"))] == []


def test_a_field_without_one_is_found():
    source = 'class A(TypedDict):\n    """A."""\n\n    a: int\n    """One."""\n    b: str\n    c: str\n    """Two."""\n'
    assert list(undocumented(source)) == ["A.b"]
