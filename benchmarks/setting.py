"""What both sides of a benchmark are given: model, tokenizer, prompts; and how their runs are put into numbers.

Imports only what a TRL environment has too: the baseline runs in one of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "data" / "support" / "preferences.jsonl"
END, PAD = "<|end|>", "<|pad|>"
_TOKENIZER_TEXTS = 4000
_ANSWER = "\n\nAssistant:"


@dataclass(frozen=True)
class Size:
    """Sizes of the model and of the texts."""

    hidden: int = 384
    intermediate: int = 1536
    layers: int = 8
    heads: int = 6
    vocabulary: int = 8000
    prompt: int = 200
    """Longest prompt, tokens."""
    reply: int = 48
    """Longest reply, tokens."""
    batch: int = 32
    """Replies of a rollout."""


TINY = Size(hidden=32, intermediate=64, layers=2, heads=2, vocabulary=600, prompt=24, reply=6, batch=8)
"""For tests: nothing that it measures means anything."""


def parser(about: str, name: str, repeats: int) -> argparse.ArgumentParser:
    """Options that all benchmarks have.

    Args:
        about: The program's description.
        name: Of the result's file.
        repeats: How often each row is run if not told.
    """
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--pairs", type=Path, help="JSONL of Anthropic's HH, maybe gzipped (default: data/support)")
    made.add_argument("--repeats", type=int, default=repeats, help="runs of each row (default: %(default)s)")
    made.add_argument("--rows", help="rows to run, with commas between (default: all)")
    made.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    made.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters: for tests")
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json", help="result file")
    return made


def texts_of(pairs: Path | None) -> list[str]:
    """Prompts as text in HH's form, in the order of the file.

    Those of data/support are one message each; before every one stand up to three whole dialogues, so that lengths are
    as ragged as in real conversations.
    """
    if pairs is not None:
        with gzip.open(pairs, "rt") if pairs.suffix == ".gz" else pairs.open() as file:
            chosen = [json.loads(line)["chosen"] for line in file]
        return [text[: text.rfind(_ANSWER) + len(_ANSWER)] for text in chosen]
    rows = [json.loads(line) for line in SUPPORT.read_text(encoding="utf-8").splitlines()]
    asked = [f"\n\nHuman: {row['prompt'][0]['content']}{_ANSWER}" for row in rows]
    whole = [f"{ask} {row['chosen'][0]['content']}" for ask, row in zip(asked, rows, strict=True)]
    draw = random.Random(0)
    return ["".join(whole[max(0, at - draw.randrange(4)) : at]) + ask for at, ask in enumerate(asked)]


def make_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on the texts, filled up to exactly this many tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts[:_TOKENIZER_TEXTS], trainer)
    bpe.add_tokens([f"<|unused{number}|>" for number in range(vocabulary - bpe.get_vocab_size())])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD, padding_side="left")


def write_setting(folder: Path, pairs: Path | None, size: Size, prompts: int) -> None:
    """Write model, tokenizer and prompts, once for all runs.

    Args:
        folder: Where to.
        pairs: Where the prompts come from.
        size: How large all is.
        prompts: How many prompts.
    """
    texts = texts_of(pairs)
    tokenizer = make_tokenizer(texts, size.vocabulary)
    tokenizer.save_pretrained(folder)
    make_model(size).save_pretrained(folder)
    rows = []
    for text in texts[:prompts]:
        ids = tokenizer(text)["input_ids"][-size.prompt :]
        rows.append({"ids": ids, "text": tokenizer.decode(ids)})
    if len(rows) < prompts:
        raise SystemExit(f"{prompts} prompts wanted, {len(rows)} there")
    (folder / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")


def make_model(size: Size) -> Any:
    """A Llama of this size, its weights drawn from one seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.heads,
        max_position_embeddings=2048, eos_token_id=0, pad_token_id=1, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def read_prompts(folder: Path, samples: int = 1) -> list[dict[str, Any]]:
    """The prompts that `write_setting` wrote.

    Args:
        folder: Where.
        samples: Replies to each that are wanted: of every so many prompts in order of length one is taken, so that
            fewer prompts are as long as all.
    """
    rows = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return sorted(rows, key=lambda row: len(row["ids"]))[samples // 2 :: samples] if samples > 1 else rows


def run_program(name: str, program: str, *arguments: str, interpreter: str = sys.executable) -> dict[str, Any]:
    """One run of a row in a process of its own.

    Args:
        name: The row.
        program: File beside this one; the last line that it prints is JSON.
        arguments: What it is given.
        interpreter: What runs it.

    Raises:
        SystemExit: It failed.
    """
    done = subprocess.run(
        [interpreter, str(Path(__file__).with_name(program)), *arguments],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    return {"row": name, **json.loads(done.stdout.strip().splitlines()[-1])}


def timed_training(trainer: Any) -> dict[str, Any]:
    """Train, and tell seconds, processor seconds, and this process's peak of memory before and after."""
    before = peak_mb()
    start, spent = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    return {"seconds": seconds, "cpu_seconds": spent, "peak_mb": peak_mb(), "before_mb": before,
            "environment": environment()}  # fmt: skip


def peak_mb() -> float:
    """The most memory that this process has had resident, MB (2^20 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def environment() -> dict[str, Any]:
    """Versions and processor, as far as they decide speed."""
    import torch

    names = ("torch", "transformers", "trl", "peft", "accelerate")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(), "versions": versions, "torch_threads": torch.get_num_threads(),
        "cpus": usable, "machine": platform.machine(), "processor": _processor(),
    }  # fmt: skip


def _processor() -> str:
    """The processor's name where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def chosen_rows(given: str | None, known: Iterable[str]) -> list[str]:
    """The rows to run, in the order in which they stand in the table.

    Raises:
        SystemExit: One is not there.
    """
    names = list(known)
    wanted = given.split(",") if given else names
    if wrong := [name for name in wanted if name not in names]:
        raise SystemExit(f"no row {', '.join(wrong)}; there are {', '.join(names)}")
    return [name for name in names if name in wanted]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(value: dict[str, float], digits: int = 2) -> str:
    """A spread in words."""
    return f"{value['median']:.{digits}f} [{value['min']:.{digits}f}–{value['max']:.{digits}f}]"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table, its columns aligned."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    for line in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def write_result(path: Path, size: Size, given: argparse.Namespace, **content: Any) -> None:
    """Write a result as JSON; of a file that was given, its name only."""
    options = {name: value for name, value in vars(given).items() if name not in ("out", "trl_python")}
    options = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"options": options, "size": asdict(size), **content}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
