"""Our sampler against `generate` of transformers, on ragged prompts and ragged replies.

usage: python benchmarks/rollout.py [--pairs FILE] [--repeats 5] [--batch 32] [--limit 64]

Each row writes the replies of one rollout: one to each of as many prompts, or four to each of a quarter as many. A set
of random tokens ends a reply, the same on both sides, so that lengths are nearly geometric as with a trained model.
What counts is useful tokens a second: up to the end token and with it. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from setting import (
    chosen_rows,
    clock,
    environment,
    parser,
    print_table,
    read_prompts,
    show,
    size_of,
    spread,
    turns,
    write_result,
    write_setting,
)
from transformers import GenerationConfig, LlamaForCausalLM

from rlhf.policies.completion import row_seed
from rlhf.policies.sampler import TransformersSampler, pad_left

PAD = 1
"""The pad token's id in the benchmark's tokenizer."""
MEAN_LENGTH = 48
"""Of a reply without a limit: one token in so many ends it."""
SPLITS = (8, 16, 32)
"""Replies sampled at once that `generate-best` tries, beside all of a rollout."""

Side = Callable[[Sequence[list[int]], int, int], list[int]]
"""From prompts, replies to each and a seed to the lengths of the replies."""


@torch.no_grad()
def generate(
    model: Any, stops: Sequence[int], limit: int, at_once: int, ordered: bool, cache: str | None,
    prompts: Sequence[list[int]], samples: int, seed: int,
) -> list[int]:  # fmt: skip
    """Lengths of replies by `generate`.

    Args:
        model: The model.
        stops: Tokens that end a reply.
        limit: Longest reply.
        at_once: Replies sampled at once.
        ordered: Whether prompts of like length go together.
        cache: Its `cache_implementation`: `static` has room for all tokens from the start, and on a GPU compiles the
            decoding step; None for its own choice.
        prompts: Token ids.
        samples: Replies to each.
        seed: Of what is drawn.
    """
    torch.manual_seed(seed)
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit, num_return_sequences=samples,
        eos_token_id=list(stops), pad_token_id=PAD, cache_implementation=cache,
    )  # fmt: skip
    ends, lengths = torch.tensor(stops, device=model.device), []
    rows = sorted(prompts, key=len) if ordered else list(prompts)
    step = max(1, at_once // samples)
    for begin in range(0, len(rows), step):
        ids, mask = pad_left(rows[begin : begin + step], PAD, model.device)
        replies = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
        ended = torch.isin(replies, ends)
        first = torch.where(ended.any(1), ended.int().argmax(1) + 1, replies.shape[1])
        lengths += first.tolist()
    return lengths


def ours(
    model: Any, stops: Sequence[int], limit: int, at_once: int,
    prompts: Sequence[list[int]], samples: int, seed: int,
) -> list[int]:  # fmt: skip
    """Lengths of replies by our sampler, which also says the log-probability of each token."""
    sampler = TransformersSampler(model, stops, PAD, limit, batch_size=at_once)
    seeds = [[row_seed(seed, place, sample) for sample in range(samples)] for place in range(len(prompts))]
    return [len(completion.ids) for group in sampler(prompts, seeds) for completion in group]


def make_rows(model: Any, stops: Sequence[int], limit: int, batch: int) -> dict[str, tuple[Side, int]]:
    """Name of each row, what it runs, and how many replies it writes to a prompt."""
    rows: dict[str, tuple[Side, int]] = {}
    for samples, mark in ((1, ""), (4, "-4")):
        rows[f"generate{mark}"] = functools.partial(generate, model, stops, limit, batch, False, None), samples
        rows[f"generate-static{mark}"] = (
            functools.partial(generate, model, stops, limit, batch, True, "static"),
            samples,
        )
        for split in sorted({*SPLITS, batch}):
            if split <= batch:
                side = functools.partial(generate, model, stops, limit, split, True, None)
                rows[f"generate-by-{split}{mark}"] = side, samples
        rows[f"ours{mark}"] = functools.partial(ours, model, stops, limit, batch), samples
    return rows


def measure(side: Side, samples: int, prompts: Sequence[list[int]], seed: int) -> dict[str, float]:
    """Useful tokens a second of one rollout, and the mean length of its replies."""
    start, _ = clock()
    lengths = side(prompts, samples, seed)
    seconds = clock()[0] - start
    assert len(lengths) == len(prompts) * samples
    return {
        "seconds": seconds, "tokens": sum(lengths), "tokens_per_second": sum(lengths) / seconds,
        "reply_length": sum(lengths) / len(lengths),
    }  # fmt: skip


def run_all(rows: dict[str, tuple[Side, int]], prompts: list[list[int]], args: argparse.Namespace) -> list[dict]:
    """All runs, the rows taking turns; each repeat has its own prompts and seeds. The first warms up and is dropped."""
    runs = []
    for repeat, name in turns(rows, args, warm_up=1):
        side, samples = rows[name]
        drawn = random.Random(repeat).sample(prompts, args.batch)
        fewer = drawn if samples == 1 else sorted(drawn, key=len)[samples // 2 :: samples]
        random.Random(repeat).shuffle(fewer)
        result = measure(side, samples, fewer, 1000 + repeat)
        if repeat:
            runs.append({"row": name, "repeat": repeat - 1, **result})
            print(f"{repeat}/{args.repeats} {name}: {result['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    return runs


def summarise(runs: list[dict], rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Speed of each row; the fastest `generate-by-…` becomes `generate-best`; ratios to both."""
    grouped: defaultdict[str, list[dict]] = defaultdict(list)
    for run in runs:
        grouped[run["row"]].append(run)
    table: dict[str, dict[str, Any]] = {
        name: {key: spread([run[key] for run in grouped[name]]) for key in ("tokens_per_second", "reply_length")}
        for name in rows
        if grouped[name]
    }
    for mark in ("", "-4"):
        tried = [name for name in table if "-by-" in name and name.endswith("-4") == bool(mark)]
        if tried:
            best = max(tried, key=lambda name: table[name]["tokens_per_second"]["median"])
            table[f"generate-best{mark}"] = {**table[best], "is": best}
        for base in (f"generate{mark}", f"generate-best{mark}"):
            for name, mine in table.items():
                if base in table and name.endswith("-4") == bool(mark):
                    to = table[base]["tokens_per_second"]["median"]
                    mine[f"ratio_to_{base}"] = mine["tokens_per_second"]["median"] / to
    return table


def print_summary(table: dict[str, dict[str, Any]]) -> None:
    """The table, in Markdown."""
    lines = []
    for name in table:
        if "-by-" in name:
            continue
        mine, mark = table[name], "-4" if name.endswith("-4") else ""
        ratios = [mine.get(f"ratio_to_{base}{mark}") for base in ("generate", "generate-best")]
        called = f"{name} ({mine['is']})" if "is" in mine else name
        shown = [f"{ratio:.2f}" if ratio else "" for ratio in ratios]
        reply = f"{mine['reply_length']['median']:.1f}"
        lines.append((bool(mark), name.startswith("ours"), [called, show(mine["tokens_per_second"], 0), *shown, reply]))
    ordered = [line for *_, line in sorted(lines, key=lambda line: line[:2])]
    print_table(["row", "useful tokens/s [min–max]", "× generate", "× generate-best", "mean reply"], ordered)


def options() -> argparse.Namespace:
    """What the command line says."""
    made = parser("Our sampler against transformers' generate, in turns, in one process.", "rollout", repeats=5)
    made.add_argument("--batch", type=int, help="replies of a rollout (default: 32)")
    made.add_argument("--limit", type=int, help="longest reply, tokens (default: 64)")
    return made.parse_args()


def main() -> None:
    """Run, print, write."""
    args = options()
    size = size_of(args)
    args.batch, args.limit = args.batch or size.batch, args.limit or (size.reply if args.tiny else 64)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_setting(folder, args.pairs, size, 4 * args.batch)
        prompts = [row["ids"] for row in read_prompts(folder)]
        kind = torch.bfloat16 if args.bf16 else torch.float32
        model = LlamaForCausalLM.from_pretrained(folder, dtype=kind).eval().to(args.device)
    ends = random.Random(0).sample(range(2, size.vocabulary), size.vocabulary // MEAN_LENGTH)
    rows = make_rows(model, sorted(ends), args.limit, args.batch)
    usual = [row for row in rows if args.device == "cuda" or "static" not in row]
    rows = {row: rows[row] for row in chosen_rows(args.rows or ",".join(usual), rows)}
    runs = run_all(rows, prompts, args)
    table = summarise(runs, list(rows))
    print_summary(table)
    write_result(args.out, size, args, environment=environment(), rows=table, runs=runs)


if __name__ == "__main__":
    main()
