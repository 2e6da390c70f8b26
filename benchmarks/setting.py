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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.preflight.arithmetic import Model

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
    kv_heads: int = 6
    vocabulary: int = 8000
    tied: bool = False
    """Whether the head is the embedding."""
    prompt: int = 200
    """Longest prompt, tokens."""
    reply: int = 48
    """Longest reply, tokens."""
    batch: int = 32
    """Replies of a rollout."""

    def model(self) -> Model:
        """The model's shapes."""
        from rlhf.preflight.arithmetic import Model

        return Model(self.layers, self.hidden, self.intermediate, self.heads, self.kv_heads, self.vocabulary, self.tied)


TINY = Size(hidden=32, intermediate=64, layers=2, heads=2, kv_heads=2, vocabulary=600, prompt=24, reply=6, batch=8)
"""For tests: nothing that it measures means anything."""
SIZES = {
    "12m": Size(hidden=256, intermediate=1024, heads=4, kv_heads=4),
    "25m": Size(),
    "0.5b": Size(
        hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2, vocabulary=151936, tied=True, prompt=256,
        reply=128, batch=128,
    ),
}  # fmt: skip
"""By `--size`; the last has the shapes of Qwen2.5 0.5B, 494 million parameters."""


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
    made.add_argument("--size", choices=list(SIZES), default="25m", help="parameters (default: %(default)s)")
    made.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters: for tests")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what both sides run on")
    made.add_argument("--bf16", action="store_true", help="bfloat16 on both sides")
    made.add_argument("--seconds", type=float, help="start no run after so many (default: no limit)")
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json", help="result file")
    return made


def size_of(args: argparse.Namespace) -> Size:
    """The size that the command line names."""
    return TINY if args.tiny else SIZES[args.size]


def turns(rows: Iterable[str], args: argparse.Namespace, warm_up: int = 0) -> Iterator[tuple[int, str]]:
    """Repeat and row of every run, the rows taking turns, until the time given is over; `warm_up` repeats more."""
    start = time.perf_counter()
    for repeat in range(args.repeats + warm_up):
        for name in rows:
            if args.seconds and time.perf_counter() - start > args.seconds:
                print(f"{args.seconds:.0f} s are over: {name} and what follows is left out", file=sys.stderr)
                return
            yield repeat, name


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
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        tie_word_embeddings=size.tied, max_position_embeddings=2048, eos_token_id=0, pad_token_id=1, bos_token_id=0,
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


def sequences(folder: Path, samples: int, reply: float) -> list[tuple[int, int]]:
    """Tokens of each reply with its prompt, and of the reply, if all are as long as their mean."""
    return [(len(row["ids"]) + round(reply), round(reply)) for row in read_prompts(folder, samples)] * samples


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


def timed_training(trainer: Any, drop: int = 0) -> dict[str, Any]:
    """Train, and tell seconds, processor seconds, and the peak of memory before and after.

    Args:
        trainer: A trainer of transformers.
        drop: Lines of its log at the start that are not timed: rollouts that warm up.
    """
    before, marks, log = peak_mb(), [], trainer.log

    def marked(*given: Any, **options: Any) -> Any:
        marks.append(clock())
        return log(*given, **options)

    trainer.log = marked
    start = clock()
    trainer.train()
    end = clock()
    first = marks[drop - 1] if drop else start
    return {"seconds": end[0] - first[0], "cpu_seconds": end[1] - first[1], "peak_mb": peak_mb(), "before_mb": before,
            "environment": environment()}  # fmt: skip


def clock() -> tuple[float, float]:
    """Seconds and processor seconds, once the GPU, if there is one, has done what it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def matmul_flops(device: str, bf16: bool, seconds: float = 1.0) -> float:
    """Operations a second of square products, the best of several tenths of the seconds given."""
    import torch

    size = 8192 if device == "cuda" else 1024
    kind = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best, begin = 0.0, clock()[0]
    while clock()[0] - begin < seconds:
        start, count = clock()[0], 0
        while clock()[0] - start < seconds / 10:
            left @ right
            count += 1
        best = max(best, 2 * size**3 * count / (clock()[0] - start))
    return best


def peak_rate(args: argparse.Namespace) -> dict[str, Any]:
    """Operations a second that MFU is a share of: a GPU's data sheet in bf16, else what square products reach here."""
    import torch

    from rlhf.preflight.arithmetic import peak_flops

    if args.threads:
        torch.set_num_threads(args.threads)
    reached = matmul_flops(args.device, args.bf16, 0.1 if args.tiny else 1.0)
    known = peak_flops(torch.cuda.get_device_name()) if args.device == "cuda" and args.bf16 else None
    return {"flops": known or reached, "matmul_flops": reached, "of": "data sheet" if known else "square products"}


def peak_mb() -> float:
    """The most memory that this process has had, MB (2^20 bytes): of the GPU if there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
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
        **({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}),
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
    text = json.dumps({"dry_run": size == TINY, "options": options, "size": asdict(size), **content}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
