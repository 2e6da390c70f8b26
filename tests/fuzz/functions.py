"""Reward functions: files that raise, end the process, return what is no score, or change what is not theirs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.inputs import Input
from tests.fuzz.values import spoilt
from tests.fuzz.world import JUDGE, ONLINE, PROJECT, write_yaml

RAISES = [
    "raise ValueError('a\\nb')", "raise Exception", "raise BaseException('no')", "raise KeyboardInterrupt",
    "raise SystemExit", "raise SystemExit('no')", "raise SystemExit(3)", "raise GeneratorExit", "raise StopIteration",
    "raise MemoryError", "raise RecursionError", "import sys; sys.exit(0)", "import sys; sys.exit(1)",
    "import os; os._exit(0)", "import os; os._exit(5)", "import os; os.abort()",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "import nothing_like_this",
    "from rlhf.errors import UserError; raise UserError('mine')",
    "from rlhf.errors import GateClosed; raise GateClosed('mine')",
    "from rlhf.errors import Defect; raise Defect('mine')", "f = lambda: f(); f()", "x = 1 / 0", "{}['a']", "[][0]",
    "None.a", "open('/nowhere')", "raise OSError(28, 'No space left on device')",
    "raise UnicodeDecodeError('a', b'b', 0, 1, 'c')",
    "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
    "raise ExceptionGroup('g', [ValueError(1)])", "raise ValueError('\\x1b[31m\\ud800\\0')",
    "raise ValueError('long ' * 10000)", "assert False", "import torch; torch.zeros(2) @ torch.zeros(3)",
    "bytearray(1 << 50)",
]  # fmt: skip
EFFECTS = [
    "pass", "print('x' * 10)", "import sys; print('noise', file=sys.stderr)", "import sys; sys.stdin.read()",
    "input()", "import os; os.chdir('/')", "import sys; sys.stdout.close()", "import sys; sys.stderr.close()",
    "import os; os.close(1)", "import os; os.close(2)", "import sys; sys.stdout = None",
    "import random; random.seed(0)", "import torch; torch.set_default_dtype(torch.float64)",
    "import torch; torch.manual_seed(0)", "import torch; torch.set_grad_enabled(False)",
    "import sys; sys.setrecursionlimit(60)", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)", "import os; os.environ.clear()",
    "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "import warnings; warnings.simplefilter('error')",
    "import gc; gc.disable()", "import os; os.umask(0o777)",
    "import logging; logging.disable()", "import atexit; atexit.register(lambda: 1 / 0)",
    "import numpy; numpy.seterr(all='raise')", "import os; os.fork() or os._exit(0)",
    "import locale; locale.setlocale(locale.LC_ALL, 'C')", "import faulthandler; faulthandler.disable()",
    "import sys; sys.path.clear()", "import sys; sys.modules.clear()", "import sys; sys.excepthook = None",
    "import tempfile; tempfile.tempdir = '/nowhere'",
]  # fmt: skip
INSIDE = [
    "prompts.clear()", "completions.clear()", "completions.append('x')", "completions[0] = None", "columns.clear()",
    "del columns", "n = -1", "prompts = None", "completions[:] = []", "globals().clear()",
]  # fmt: skip
RETURNS = [
    "[1.0] * n", "[1.0] * (n - 1)", "[1.0] * (n + 1)", "[]", "None", "1.0", "'a' * n", "b'a' * n", "['a'] * n",
    "['1.0'] * n", "[None] * n", "[float('nan')] * n", "[float('inf')] * n", "[1e300] * n",
    "[-1e300, *[1.0] * (n - 1)]", "[10 ** 400] * n", "[True] * n", "[[1.0]] * n", "{i: 1.0 for i in range(n)}",
    "{1.0}", "(1.0 for _ in range(n))", "(1 / 0 for _ in range(n))", "iter([1.0] * n)", "range(n)",
    "map(float, range(n))", "[1j] * n", "[object()] * n", "__import__('numpy').ones(n)",
    "__import__('numpy').ones((n, 2))", "__import__('numpy').full(n, float('nan'))",
    "__import__('numpy').array(['a'] * n)", "__import__('torch').ones(n)", "__import__('torch').ones(n, 1)",
    "__import__('torch').ones(n, requires_grad=True)", "__import__('torch').ones(n, device='meta')",
    "[__import__('torch').ones(1)] * n", "[__import__('torch').ones(2)] * n",
    "[__import__('decimal').Decimal('NaN')] * n", "[__import__('decimal').Decimal('sNaN')] * n",
    "[__import__('fractions').Fraction(1, 3)] * n", "__import__('itertools').repeat(1.0, 10 ** 7)", "score", "type",
    "[i * 1e-320 for i in range(n)]", "...", "lambda: 1", "type('L', (), {'__iter__': lambda s: 1 / 0})()",
    "type('L', (), {'__len__': lambda s: -1, '__iter__': lambda s: iter([1.0] * n)})()",
    "[type('F', (float,), {'__float__': lambda s: 1 / 0})()] * n",
]  # fmt: skip
SIGNATURES = [
    "def score(prompts, completions, **columns):", "def score(completions, **columns):",
    "def score(prompts, completions):", "def score(*args, **kwargs):",
    "def score(prompts, completions, /, **columns):", "def score():",
    "def score(prompts, completions, needed, **columns):", "async def score(prompts, completions, **columns):",
    "def score(completions, prompts, prompt=None, chosen=1, **columns):",
    "def scores(prompts, completions, **columns):",
    "class score:\n  def __new__(cls, prompts, completions, **columns):",
]  # fmt: skip


def _block(lines: list[str], indent: str) -> str:
    return "".join(f"{indent}{part}\n" for line in lines for part in line.splitlines())


@st.composite
def sources(draw: st.DrawFn) -> tuple[bytes, str]:
    """The source of a reward function, and what is wrong with it."""
    what = draw(
        st.sampled_from(
            [
                "raises",
                "raises",
                "returns",
                "returns",
                "returns",
                "effect",
                "effect",
                "import",
                "later",
                "signature",
                "bytes",
                "yields",
                "hangs",
            ]
        )
    )
    top: list[str] = []
    inside: list[str] = []
    result, signature = "[1.0] * n", SIGNATURES[0]
    if what == "bytes":
        return draw(spoilt(JUDGE)), what
    if what == "raises":
        inside = [draw(st.sampled_from(RAISES))]
    elif what == "returns":
        result = draw(st.sampled_from(RETURNS))
    elif what == "effect":
        inside = draw(st.lists(st.sampled_from(EFFECTS + INSIDE), min_size=1, max_size=2))
    elif what == "import":
        top = [draw(st.sampled_from(RAISES + EFFECTS))]
    elif what == "later":  # when it is called again: the trial call has gone well
        call = draw(st.sampled_from(RAISES)).replace("\n", "\n  ")
        inside = ["global calls", "calls += 1", f"if calls > {draw(st.integers(1, 3))}:\n  {call}"]
        top = ["calls = 0"]
    elif what == "signature":
        signature = draw(st.sampled_from(SIGNATURES))
    elif what == "hangs":
        inside = [
            draw(
                st.sampled_from(
                    ["import time; time.sleep(0.5)", "sum(range(10 ** 6))", "sorted(range(10 ** 6), reverse=True)"]
                )
            )
        ]
    end = f"yield from {result}" if what == "yields" else f"return {result}"
    names = "prompts, completions" if "completions" in signature else ""
    count = "n = len(completions)" if names else "n = 4"
    return (_block(top, "") + signature + "\n" + _block([count, *inside, end], "    ")).encode(), what


@st.composite
def functions(draw: st.DrawFn) -> Input:
    """A reward function that online training maximises, or that judges the policies of a finished run."""
    source, what = draw(sources())
    tree: dict[str, Any] = {**PROJECT}
    if draw(st.integers(0, 5)) == 0:
        tree["rewards"] = {"long": {"function": draw(st.sampled_from([
            "judge.py:score", "judge.py:scor", "judge.py", ":score", "judge.py:", "nothing.py:score", "model:score",
            "project.yaml:f", "os:getcwd", "json:dumps", "judge:score", "./judge.py:score",
            "rlhf.rewards.regex:regex", "rlhf.rewards:nothing", "judge.py:score.x", "/dev/null:x",
            "a" * 300 + ".py:x",
        ]))}}  # fmt: skip
        if draw(st.booleans()):
            names = st.sampled_from(["prompts", "completions", "chosen", "x", "pattern", ""])
            given = st.sampled_from([1, "(", None, [], "a" * 99])
            tree["rewards"]["long"]["arguments"] = draw(st.dictionaries(names, given, max_size=2))
    if draw(st.booleans()):
        tree["stages"] = {"ppo": {**ONLINE, "rewards": {"long": 1.0}}}
        tree["evaluate"] = False
        command, finished = ("run", "project.yaml"), False
    else:
        command, finished = ("run", "project.yaml", "--only", "evaluate"), True
    files = {"judge.py": source, "project.yaml": write_yaml(tree)}
    return Input("reward", what, command, files, run=finished, trains=True, limit=90)
