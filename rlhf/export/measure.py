"""Size and speed of a model before and after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Preference, Prompt
from rlhf.data.tokenize import Codec
from rlhf.export.result import Rate
from rlhf.models.device import device
from rlhf.models.tasks import CAUSAL_LM, is_encoder
from rlhf.policies.causal_lm import fitted
from rlhf.policies.kinds import policy_kind
from rlhf.policies.sampler import TransformersSampler
from rlhf.policies.sampling_check import batching_of
from rlhf.publish.build import Finished
from rlhf.rewards.model import score_texts

REPEATS = 3
PROMPTS, TOKENS = 16, 64
"""Prompts that are answered at once, and tokens of each reply, in a run whose time is taken."""
_SUFFIXES = (".safetensors", ".gguf")


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of weights in a folder."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights; tied ones count once."""
    return sum(each.numel() * each.element_size() for each in model.parameters())


def rates(work: Mapping[str, Callable[[], int]], unit: str, repeats: int = REPEATS) -> dict[str, Rate]:
    """How fast things are done, measured in turns, so that what else the machine does falls on all of them.

    Args:
        work: Does it once, and returns how many units that were; called once before time is taken.
        unit: What they are, `tokens a second`.
        repeats: Turns.
    """
    for run in work.values():
        run()
    measured: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            start = time.perf_counter()
            units = run()
            measured[name].append(units / (time.perf_counter() - start))
    return {
        name: Rate(unit=unit, median=statistics.median(of), least=min(of), most=max(of))
        for name, of in measured.items()
    }


def policy_rates(
    whole: Finished, models: Mapping[str, PreTrainedModel], prompts: Sequence[Prompt], settings: EvaluateConfig
) -> dict[str, Rate]:
    """How fast policies answer: tokens that a language model writes, answers of any other kind.

    Args:
        whole: The stage.
        models: By name.
        prompts: What they answer, the first of them.
        settings: How they are sampled.
    """
    some, kind = prompts[:PROMPTS], policy_kind(whole.opened)
    if whole.opened.task is not CAUSAL_LM:

        def answer(model: PreTrainedModel) -> int:
            return len(kind.complete(model, some, settings, samples=1, seed=0, label="").completions)

        return rates({name: partial(answer, model) for name, model in models.items()}, "answers a second")
    tokenizer = whole.opened.tokenizer

    def writer(model: PreTrainedModel) -> Callable[[], int]:
        longest = min(TOKENS, settings.max_new_tokens)
        ids, _ = fitted(model, Codec(tokenizer), [each.prompt for each in some], longest)
        sampler = TransformersSampler(
            model, [], int(tokenizer.pad_token_id), longest, batch_size=PROMPTS, batching=batching_of(model)
        )
        seeds = [[number] for number in range(len(ids))]
        return lambda: sum(len(row[0].ids) for row in sampler(ids, seeds))

    return rates({name: writer(model) for name, model in models.items()}, "tokens a second")


def scorer_rates(
    whole: Finished, models: Mapping[str, PreTrainedModel], pairs: Sequence[Preference]
) -> dict[str, Rate]:
    """How many sequences a second reward models score."""
    score = scorer(whole)
    some = pairs[:PROMPTS]
    prompts = [pair.prompt for pair in some for _ in range(2)]
    completions = [side for pair in some for side in (pair.chosen, pair.rejected)]

    def scored(model: PreTrainedModel) -> int:
        return len(score(model)(prompts, completions))

    return rates({name: partial(scored, model) for name, model in models.items()}, "sequences a second")


def scorer(whole: Finished) -> Callable[[PreTrainedModel], Callable[..., list[float | None]]]:
    """A model as a judge of completions, as `rewards.model.RewardModel` has it."""

    def judge(model: PreTrainedModel) -> Callable[..., list[float | None]]:
        codec = Codec(whole.opened.tokenizer, encoder=is_encoder(model.config))
        return lambda prompts, completions, **columns: score_texts(model, codec, prompts, completions)

    return judge


def placed(*models: Any) -> None:
    """Move models to the accelerator, if there is one, and have them evaluate."""
    for model in models:
        model.to(device()).eval()
