"""Imports point one way, and the command line starts light."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

ORDER = [
    # reading a YAML asks which stages there are
    {
        "errors",
        "durable",
        "interrupts",
        "network",
        "processes",
        "progress",
        "secrets",
        "config",
        "workflow",
        "shipped",
        "workload",
    },
    {"failure"},
    {"objectives"},
    {"data", "models", "prefix_sharing"},
    {"artifacts"},
    {"policies", "rewards"},
    {"envs"},
    {"evaluation"},
    {"report"},
    {"training", "publish", "serving"},
    {"trl_trainers", "ppo", "arena", "export"},
    {"stages"},
    {"pipeline"},
    {"environment", "history", "preflight"},
    {"init"},
    {"cli"},
]
"""Rooms from the ground up; each may import its own level and those below."""

HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "scipy"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names if node.module == "rlhf")]
    return [name for name in names if name.startswith("rlhf.")]


def test_imports_point_one_way(root):
    level = {name: number for number, names in enumerate(ORDER) for name in names}
    wrong = []
    for path in sorted((root / "rlhf").rglob("*.py")):
        here = path.relative_to(root / "rlhf").parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name in imports(path):
            if room(name) in level and level[room(name)] > level[here]:
                wrong.append(f"{path.relative_to(root)} imports {name}")
    assert not wrong


def test_objectives_import_torch_and_nothing_of_ours(root):
    for path in (root / "rlhf/objectives").glob("*.py"):
        assert all(room(name) == "objectives" for name in imports(path))


def behind(module: str) -> set[str]:
    """The package's modules behind a stage: what its file imports, at the top and inside its functions."""
    code = f"""
import ast, importlib, sys
queue = ["{module}"]
for name in queue:
    for node in ast.walk(ast.parse(open(importlib.import_module(name).__file__).read())):
        if isinstance(node, ast.ImportFrom):
            importlib.import_module(node.module)
            if node.module.startswith("rlhf.stages._reference"):
                queue.append(node.module)
print(*(name for name in sys.modules if name.startswith("rlhf.")))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_training_imports_no_statistics(root):
    """A judge of checkpoints is handed to it; so what stands behind dpo is about what sft needs."""
    for name in ("training", "trl_trainers", "ppo"):
        for path in (root / "rlhf" / name).glob("*.py"):
            assert not [module for module in imports(path) if room(module) in ("evaluation", "report")], path
    sft, dpo = behind("rlhf.stages.sft"), behind("rlhf.stages.dpo")
    assert not {module for module in dpo if room(module) in ("evaluation", "report", "rewards", "publish", "ppo")}
    assert len(dpo - sft) <= 6, sorted(dpo - sft)


def test_the_orchestrator_is_light():
    """The stage files too, which it asks what stages there are."""
    code = "import sys, rlhf.cli, rlhf.pipeline.runner; from rlhf.workflow import stages; stages(); "
    code += "print(*{m.split('.')[0] for m in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert not loaded & HEAVY


def test_help_answers_at_once():
    """In the processor's time: 0.4 s, on a busy machine twice as much; importing torch takes 1.2 s more."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "rlhf.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1.0


def test_files_and_functions_stay_small(root):
    long = []
    for path in [*(root / "rlhf").rglob("*.py"), *(root / "recipes").glob("*.py")]:
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 60:
                long.append(f"{path.name}:{node.lineno} {node.name}")
    assert not long
