"""A few spoilt inputs of each kind, the same ones each time: each ends as the command promises."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import Input, Special
from tests.fuzz.kinds import KINDS
from tests.fuzz.world import finish_run

FEW = {"config": 40, "data": 12, "reward": 6, "model": 12, "artefact": 20}
"""The last three train, or need a finished run."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in ("config", "data") else [pytest.mark.slow]) for kind in KINDS]
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(run, world, sandbox, kind):
    if kind in ("model", "artefact") and not (world / "run").exists():
        finish_run(world, sandbox)

    @settings(
        max_examples=FEW[kind], derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(st.data())
    def every(data):
        made = data.draw(KINDS[kind].inputs(world))
        ended, line, wrong = run(made)
        assert not wrong, (made.command, ended, line)

    every()


def files(**changed):
    return {name.replace("_", "."): content for name, content in changed.items()}


LEAVES = (
    b"import os\nos.mkdir(os.path.expanduser('~/left'))\ndef score(prompts, completions, **columns): return 1 / 0\n"
)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (Input("reward", "", ("check", "project.yaml"), files(judge_py=LEAVES)), ["left: home/left"]),
        (
            Input("data", "", ("check", "project.yaml"), files(pairs_jsonl=Special("fifo")), limit=0.01),
            ["not ended after 0.01 s"],
        ),
    ],
)
def test_what_does_not_hold_is_found(run, made, found):
    assert run(made)[2] == found
