"""Find a run and a stage of it from what a user types: `RUN` or `RUN:STAGE`.

Light: no torch.
"""

from __future__ import annotations

from pathlib import Path

from rlhf.artifacts import manifest
from rlhf.artifacts.confined import check_confined
from rlhf.config.load import load_project
from rlhf.errors import UserError, unknown_name
from rlhf.pipeline.folder import OWNER
from rlhf.workflow import in_order, is_stage, kind_of, stage_of, stages

_YAML = (".yaml", ".yml")


def find_run(spec: str, output_dir: str | Path = "runs") -> tuple[Path, str | None]:
    """The folder of a run, and the stage if one is named.

    Args:
        spec: A run's folder, its name, its YAML file or the folder of one of its stages; `:STAGE` may follow.
        output_dir: Where a run is looked for by its name.

    Returns:
        The run's folder, and the stage's name as given (`pick_stage` checks it) or None.

    Raises:
        UserError: There is no such run, and the nearest name is given; or a link in it leads outside.
    """
    found = _find(spec, output_dir)
    check_confined(found[0])
    return found


def _find(spec: str, output_dir: str | Path) -> tuple[Path, str | None]:
    whole = _locate(spec, Path(output_dir))
    if whole is not None:
        return whole
    head, colon, stage = spec.rpartition(":")
    located = _locate(head, Path(output_dir)) if colon and head else None
    if located is not None:
        return located[0], stage or None
    name = head if colon and head else spec
    if Path(name).is_dir():
        raise UserError(f"{name}: is a folder, but no run: it holds no finished stage")
    raise UserError(f"{name}: no such run{_nearest(name, Path(output_dir))}")


def pick_stage(run_dir: Path, stage: str | None = None, policies_only: bool = True) -> Path:
    """The folder of a finished stage whose files are as its manifest says.

    Args:
        run_dir: A run's folder.
        stage: The stage; None takes the last finished policy (ppo before dpo before sft).
        policies_only: Refuse a stage that does not reply, such as `reward`.

    Raises:
        UserError: There is no such stage, it is not finished, or its files changed since.
    """
    finished = finished_stages(run_dir)
    fitting = [name for name in finished if stage_of(name).can_generate or not policies_only]
    if stage is None:
        policies = [name for name in fitting if stage_of(name).leaves == "policy" and name == kind_of(name)]
        if not policies:
            raise UserError(f"{run_dir}: no finished policy yet{_listed(finished)}")
        stage = policies[-1]
    elif stage in manifest.finished_stages(run_dir) and stage not in finished and is_stage(stage):
        raise UserError(f"{run_dir / stage}: {stage} leaves no model{_listed(fitting)}")
    elif not is_stage(stage) or not _is_model(stage):
        raise UserError(f"{run_dir}: no stage {stage!r}; {unknown_name(stage, filter(_is_model, stages()))}")
    elif stage not in finished:
        raise UserError(f"{run_dir}: {stage} is not finished{_listed(fitting)}")
    elif stage not in fitting:
        raise UserError(f"{run_dir / stage}: {stage} is no policy, it cannot reply{_listed(fitting)}")
    manifest.verify(run_dir / stage)
    return run_dir / stage


def finished_stages(run_dir: Path) -> list[str]:
    """The stages of a run that have left a model, in the order they run."""
    return [name for name in in_order(manifest.finished_stages(run_dir)) if _is_model(name)]


def _is_model(stage: str) -> bool:
    return stage_of(stage).leaves_model


def _locate(spec: str, output_dir: Path) -> tuple[Path, str | None] | None:
    path = Path(spec).expanduser()
    if path.suffix in _YAML and path.is_file():
        run_dir = load_project(path).run_dir
        if not is_run(run_dir):
            raise UserError(f"{path}: has not run yet: nothing is in {run_dir}")
        return run_dir, None
    for folder in (path, output_dir / spec):
        if is_run(folder):
            return folder, None
    if manifest.is_finished(path):
        return path.parent, path.name
    return None


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, begun or not."""
    return (folder / OWNER).is_file() or bool(manifest.finished_stages(folder))


def _nearest(name: str, output_dir: Path) -> str:
    runs = [folder.name for folder in output_dir.iterdir() if is_run(folder)] if output_dir.is_dir() else []
    if not runs:
        return f" ({output_dir} holds none)"
    return f"; {unknown_name(Path(name).name, runs)}"


def _listed(stages: list[str]) -> str:
    return f"; there is {', '.join(stages)}" if stages else ""
