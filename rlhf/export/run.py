"""Exports a finished stage: writes it in a format, loads it again, measures what that cost, and says so beside it.

Everything is made in a folder beside the target, which takes its place in the end: whatever happens, the target is what
it was or whole.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel

from rlhf.artifacts.json_files import read_object, write_json
from rlhf.artifacts.manifest import versions
from rlhf.artifacts.rounds import run_name
from rlhf.config.project import ProjectConfig
from rlhf.data.prepare import evaluation_prompts
from rlhf.data.records import Prompt
from rlhf.durable import rename_durably, sync_tree
from rlhf.errors import UserError
from rlhf.evaluation.pairs import held_out_pairs
from rlhf.evaluation.reward_model import Pairs
from rlhf.export import formats
from rlhf.export import result as results
from rlhf.export.calibrate import calibration_runs
from rlhf.export.compare import compare_policies, compare_scorers
from rlhf.export.formats import Format
from rlhf.export.measure import file_sizes, placed, policy_rates, scorer_rates, weight_bytes
from rlhf.export.prune import Pruning, check_prunes, input_norms, prune, pruning
from rlhf.export.result import Exported, Probe
from rlhf.models import probe
from rlhf.publish.build import Finished, finished, load_whole
from rlhf.publish.card import Derived

_IN_4_BITS = "it was trained on a base in 4 bits, and its adapter is merged into the unquantized base"
"""Why a merged model need not give the outputs of the stage."""

Say = Callable[[str], None]
HeldOut = Pairs | list[Prompt]
"""Held-out pairs for a reward model, prompts for a policy."""


@dataclass(frozen=True)
class Settings:
    """What an export shall be."""

    format: Format
    pruning: Pruning | None = None
    evaluate: bool | None = None
    """Whether it is compared with the stage on held-out data; None where the weights differ and the project holds any
    out."""

    @property
    def name(self) -> str:
        """What to call it beside the stage."""
        return self.format.name if self.pruning is None else f"{self.format.name}, {self.pruning.method}"

    @property
    def what(self) -> str:
        """What the weights are."""
        return self.format.what if self.pruning is None else f"{self.format.what}, pruned ({self.pruning})"


def settings_of(format_name: str, prune: str | None, sparsity: str | None, evaluate: bool | None) -> Settings:
    """What the options of the command ask for.

    Raises:
        UserError: An option means nothing, or a package of the format is not installed.
    """
    return Settings(formats.find(format_name), pruning(prune, sparsity), evaluate)


def export(
    project: ProjectConfig, run_dir: Path, stage: str, to: Path, settings: Settings, force: bool = False,
    say: Say = print,
) -> Exported:  # fmt: skip
    """Export a stage.

    Args:
        project: The run's project.
        run_dir: The run's folder.
        stage: One of its finished stages, which leaves a model.
        to: The folder to write: a new one, an empty one, or with `force` that of an earlier export.
        settings: What it shall be.
        force: Whether an earlier export is replaced.
        say: Is told what is done.

    Returns:
        What was measured; it also stands in the folder, as export.json and in its README.

    Raises:
        UserError: The folder may not be written, the stage cannot be handed out, the format does not fit it, or what
            was written is not the model when it is loaded again.
    """
    try:
        _check_target(to, force)
    except OSError as error:  # such as a name that is too long
        raise _refused(error, to) from None
    whole = finished(run_dir, stage)
    settings.format.check(whole)
    held_out = _held_out(project, whole, settings)
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        result = _Export(project, whole, settings, held_out, say).write(partial)
        sync_tree(partial)
        _take_place(partial, to)
    except OSError as error:
        raise _refused(error, to) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


def _refused(error: OSError, to: Path) -> UserError:
    return UserError(f"{error.filename or to}: {(error.strerror or str(error)).lower()}")


def _check_target(to: Path, force: bool) -> None:
    """Check that an export may take this place.

    Raises:
        UserError: Something is there that is no export, or one that may not be replaced.
    """
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise UserError(f"{to}: is no folder; name another with --to")
    if not to.exists() or not any(to.iterdir()):
        return
    if not (to / results.FILE).is_file():
        raise UserError(f"{to}: is not empty, and holds no export that could be replaced; name another with --to")
    read_object(to / results.FILE, {"stage": str, "format": str}, "name another folder with --to")
    if not force:
        raise UserError(f"{to}: holds an export already; replace it with --force, or name another with --to")


def _take_place(partial: Path, to: Path) -> None:
    """Move a whole folder to its place; an earlier export gives way once nothing else is left to do."""
    earlier = to.with_name(f".{to.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if to.exists():
        rename_durably(to, earlier)
    rename_durably(partial, to)
    shutil.rmtree(earlier, ignore_errors=True)


def _held_out(project: ProjectConfig, whole: Finished, settings: Settings) -> HeldOut | str:
    """Held-out pairs for a reward model, prompts for a policy; where none are used, why.

    Raises:
        UserError: They are wanted, and there are none.
    """
    wanted = settings.evaluate
    if wanted is False:
        return "--no-evaluate"
    if wanted is None and settings.pruning is None and settings.format.precision is None:
        exact = whole.opened.settings.quantization is None
        return "its weights are the stage's own, as the probe shows" if exact else _IN_4_BITS
    try:
        if whole.opened.kind == "reward":
            return held_out_pairs(project)
        return evaluation_prompts(project, project.evaluate.prompts)
    except UserError as error:
        if wanted:
            raise
        return str(error)


@dataclass(frozen=True)
class _Export:
    """An export that is being made."""

    project: ProjectConfig
    whole: Finished
    settings: Settings
    held_out: HeldOut | str
    say: Say

    def write(self, folder: Path) -> Exported:
        """Write, measure and describe it in an empty folder."""
        whole, export_format = self.whole, self.settings.format
        self.say(f"loading {whole.stage}")
        original = whole.model().eval()
        model, pruned = self._pruned(original)
        self.say(f"writing {export_format.what}")
        whole.opened.processor.save_pretrained(folder)
        notes = list(export_format.write(model, whole, folder))
        if whole.opened.settings.quantization is not None:
            notes.append(f"The stage itself gives other outputs: {_IN_4_BITS}.")
        with contextlib.redirect_stderr(io.StringIO()):  # bars
            exported = load_whole(folder, whole.opened.settings.dtype, whole.task, **export_format.arguments)
        probed = self._probe(model, exported)
        del model
        gc.collect()
        placed(original, exported)
        sizes = file_sizes(folder)
        result = Exported(
            run=run_name(whole.run_dir), stage=whole.stage, format=export_format.name, pruning=pruned, files=sizes,
            bytes=sum(sizes.values()), original_bytes=weight_bytes(original), notes=notes, probe=probed,
            original_rate=None, rate=None, comparisons=[], retained=[], kl_per_token=None, pairs=None,
            not_evaluated=None, versions={**versions(), **{name: version(name) for name in export_format.packages}},
        )  # fmt: skip
        self._measure(original, exported, result)
        self._describe(folder, result)
        return result

    def _pruned(self, original: PreTrainedModel) -> tuple[PreTrainedModel, results.Pruned | None]:
        """The model to write, a pruned copy where it is to be pruned, and what was pruned."""
        how, rows, norms = self.settings.pruning, None, None
        if how is None:
            return original, None
        check_prunes(original, how)
        self.say(f"pruning: {how}")
        if how.method == "wanda":
            norms, rows = input_norms(original, calibration_runs(self.project, self.whole, original))
            if not rows:
                raise UserError(
                    f"{self.project.path}: --prune wanda: no training row could be read; take --prune magnitude"
                )
        model = copy.deepcopy(original)
        counted = prune(model, how, norms)
        return model, results.Pruned(
            how=str(how), method=how.method, sparsity=how.sparsity, rows=rows, layers=counted.layers,
            zeros=counted.zeros, zeros_of_all=counted.zeros_of_all,
        )  # fmt: skip

    def _probe(self, model: PreTrainedModel, exported: PreTrainedModel) -> Probe | None:
        """Hold the loaded export against the model that was written, on the stage's probe.

        Raises:
            UserError: They differ by more than rounding.
        """
        recorded = self.whole.opened.manifest.get("probe")
        if not recorded:
            return None
        precision = self.settings.format.precision or self.whole.opened.settings.dtype
        written, now = (probe.again(each, recorded)["outputs"] for each in (model, exported))
        for was, read in zip(written, now, strict=True):
            if not probe.agrees(was, read, precision):
                raise UserError(
                    f"{self.whole.run_dir / self.whole.stage}: written as {self.settings.format.name} and loaded "
                    f"again, the model scores its probe sequence {read:.4f}; in memory it scored {was:.4f}, and "
                    "rounding does not explain that: nothing was exported"
                )
        return Probe(recorded=list(recorded["outputs"]), written=written, exported=now, tolerance=precision)

    def _measure(self, original: PreTrainedModel, exported: PreTrainedModel, result: Exported) -> None:
        """Compare both models on what is held out, and take their speed; filled in in place."""
        whole, held_out, engine = self.whole, self.held_out, self.settings.format.engine
        if isinstance(held_out, str):
            result["not_evaluated"] = held_out
            return
        models = {whole.stage: original, self.settings.name: exported}
        self.say("comparing it with the stage on held-out data")
        if isinstance(held_out, Pairs):
            result["pairs"] = compare_scorers(whole, held_out, original, exported)
        else:
            compared = compare_policies(
                self.project, whole, held_out, original, exported, f"{whole.stage} {self.settings.name}"
            )
            result["comparisons"], result["retained"], result["kl_per_token"] = compared
        if engine is not None:
            result["notes"].append(
                f"Its speed is not measured: the file is for {engine}, and transformers, which read it back, makes "
                "float weights of it."
            )
            return
        self.say("taking their speed")
        if isinstance(held_out, Pairs):
            speeds = scorer_rates(whole, models, held_out.records)
        else:
            speeds = policy_rates(whole, models, held_out, self.project.evaluate)
        result["original_rate"], result["rate"] = speeds.values()

    def _describe(self, folder: Path, result: Exported) -> None:
        """Write export.json, card and report."""
        write_json(folder / results.FILE, result)
        derived = Derived(
            self.settings.what, self.settings.format.arguments, self.settings.format.packages, results.section(result)
        )
        self.whole.describe(folder, None, adapter=False, expected=None, added=False, derived=derived)
