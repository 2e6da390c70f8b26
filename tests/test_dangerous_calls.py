"""The package calls nothing that turns data into code: no pickle, no eval, no shell, no code from the hub."""

import ast

import pytest

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "torch.load", "np.load", "numpy.load", "yaml.unsafe_load"}
LOADED = "yaml.load", "Loader"
"""Allowed with our own loader, which is a safe one."""


def dangerous(source: str) -> list[str]:
    """What a file imports or calls that could run data as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            safe_yaml = name != LOADED[0] or given.get("Loader") == LOADED[1]
            if name in CALLS or not safe_yaml:
                found.append(name)
            found += [
                f"{key}=True" for key in ("trust_remote_code", "shell", "allow_pickle") if given.get(key) == "True"
            ]
    return found


def test_no_file_of_the_package_does(root):
    for path in sorted((root / "rlhf").rglob("*.py")):
        assert dangerous(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("from pickle import loads", "pickle"),
        ("torch.load(path, weights_only=True)", "torch.load"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("subprocess.run(line, shell=True)", "shell=True"),
        ("model = Auto.from_pretrained(name, trust_remote_code=True)", "trust_remote_code=True"),
    ],
)
def test_each_would_be_seen(line, what):
    assert dangerous(line) == [what]
    assert dangerous("model.eval()\nre.compile('a')\nyaml.load(text, Loader=Loader)") == []
