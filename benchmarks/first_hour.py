"""The first hour of a user, timed and with its keystrokes counted: from the wheel to exports that plain libraries load.

usage: python benchmarks/first_hour.py --pairs helpful-base.jsonl.gz --maths gsm8k [--limit 200] [--skip-quickstart]

The wheel is built and installed into an empty environment in a temporary folder. Everything after that is a command
line, typed into a shell in a folder that holds nothing but the user's files: the quickstart, then for each of the two
sets `init`, `check`, `run`, `chat` and two exports. Another process, which does not import this package, loads each
export and replies with it. The first command that fails ends the program. Prints tables in Markdown, and writes
`results/first_hour.json` after every command, and the page's section.

Keystrokes are the characters of a command line and Enter: nothing is completed by Tab or copied. A command of the
table is the one that was run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficiency import write_section
from setting import environment

from rlhf.evaluation.formatting import duration
from rlhf.report.names import shown_verdict
from rlhf.report.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
BASE = "recipes/data/base"
"""Where `rlhf quickstart` lays the model that ships."""
LONGEST_REPLY = 48
LOADER = """\
import json
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder, question, longest = sys.argv[1], sys.argv[2], int(sys.argv[3])
file = {"gguf_file": "model.gguf"} if "gguf" in folder else {}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, **file).eval()
messages = [{"role": "user", "content": question}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=longest, do_sample=False, pad_token_id=tokenizer.pad_token_id)
tokens = output[0, inputs["input_ids"].shape[1] :]
assert "rlhf" not in sys.modules
print(json.dumps({"reply": tokenizer.decode(tokens, skip_special_tokens=True), "tokens": len(tokens)}))
"""
"""Loads an export with nothing but transformers, and what that needs for int8 (torchao) and GGUF (gguf)."""


@dataclass(frozen=True)
class Chain:
    """One set of a user, from its file to two exports."""

    title: str
    source: str
    """The file or folder, as the user types it."""
    stages: str
    quantised: str
    """The second format; the first is `merged`."""
    question: str
    """What every export replies to."""
    settings: str = ""
    """Changes of settings on the command line."""

    @property
    def name(self) -> str:
        """Of the YAML and of the run, as `rlhf init` chooses it."""
        return self.source.partition(".")[0]

    def commands(self, limit: int) -> Iterator[tuple[str, str]]:
        """What a step is for, and its command line."""
        yaml, settings = f"{self.name}.yaml", f" {self.settings}" if self.settings else ""
        yield "a project", f"rlhf init {self.source} --model {BASE} --to {self.stages} --limit {limit}"
        yield "check", f"rlhf check {yaml}{settings}"
        yield "train, evaluate", f"rlhf run {yaml}{settings}"
        sampling = f"--temperature 0 --max-new-tokens {LONGEST_REPLY}"
        yield "talk to it", f"echo '{self.question}' | rlhf chat {self.name} {sampling}"
        for form in ("merged", self.quantised):
            yield f"export, {form}", f"rlhf export {self.name} --to {self.exported(form)} --format {form}"

    def exported(self, form: str) -> str:
        """The folder of an export."""
        return f"out/{self.name}-{form}"


class Typed:
    """Runs command lines in the user's folder, and keeps what they took."""

    def __init__(self, folder: Path, binaries: Path, threads: int | None, out: Path, result: dict[str, Any]):
        """Make a shell's environment in which nothing of this checkout or of earlier downloads can be seen.

        Args:
            folder: Where the commands run.
            binaries: Folder of the programs of the user's environment.
            threads: Of torch; None for its own choice.
            out: The result's file, written after every command.
            result: What is written; `steps` is added to.
        """
        self.folder, self.out, self.result = folder, out, result
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_TOKEN")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        self.environment["HF_HOME"] = str(folder.parent / "hf")
        if threads is not None:
            self.environment["OMP_NUM_THREADS"] = str(threads)

    def run(self, part: str, step: str, command: str, typed: bool = True) -> str:
        """Run a command line; its stdout.

        Args:
            part: Chain that it belongs to.
            step: What it is for.
            command: As typed into a shell.
            typed: Whether a user types it, so that its keystrokes count.
        """
        print(f"{part}: {command}", file=sys.stderr, flush=True)
        load, start = os.getloadavg()[0], time.perf_counter()
        done = subprocess.run(
            command, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{command}\nended with {done.returncode} after {seconds:.0f} s:\n{done.stderr[-3000:]}")
        entry = {"part": part, "step": step, "command": command, "keystrokes": len(command) + 1 if typed else 0}
        self.keep("steps", entry | {"seconds": round(seconds, 2), "load": round(load, 1)})
        return done.stdout

    def keep(self, what: str, entry: dict[str, Any]) -> None:
        """Add an entry to the result, and write its file."""
        self.result[what].append(entry)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")


def install(shell: Typed, torch: str) -> None:
    """Build the wheel, and install it into an environment that has nothing; this checkout must not be in it."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # it would bring back files that are gone
    with tempfile.TemporaryDirectory() as scratch:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        shutil.copy(wheel, shell.folder)
    shutil.copy(ROOT / "constraints.txt", shell.folder)
    shell.run("Install", "an environment", "python3 -m venv env")
    bare = json.loads(shell.run("Install", "it is empty", "python -m pip list --format json", typed=False))
    left = {package["name"] for package in bare} - {"pip", "setuptools", "wheel"}
    if left:
        raise SystemExit(f"the new environment is not empty: {', '.join(sorted(left))}")
    shell.run("Install", "torch", f"pip install -q {torch}")
    shell.run("Install", "the wheel", f"pip install -q -c constraints.txt './{wheel.name}[export]'")
    place = Path(shell.run("Install", "it is the wheel", 'python -c "import rlhf; print(rlhf.__file__)"', typed=False))
    if not place.is_relative_to(shell.folder):
        raise SystemExit(f"rlhf is imported from {place}, not from the new environment")


def follow(shell: Typed, chain: Chain, limit: int) -> None:
    """Type a chain, load its exports with plain libraries, and keep what came out."""
    answer = ""
    for step, command in chain.commands(limit):
        printed = shell.run(chain.title, step, command)
        answer = printed.strip() if step == "talk to it" else answer
    loader = shell.folder / "load.py"
    loader.write_text(LOADER, encoding="utf-8")
    for form in ("merged", chain.quantised):
        folder = chain.exported(form)
        command = f"python load.py {folder} '{chain.question}' {LONGEST_REPLY}"
        reply = json.loads(shell.run(chain.title, f"load, {form}", command))
        if not reply["tokens"]:
            raise SystemExit(f"{folder} loads and replies nothing")
        export = json.loads((shell.folder / folder / "export.json").read_text(encoding="utf-8"))
        compared = [*(export["retained"] or ()), *(export["comparisons"] or ())]
        what = {"chain": chain.title, "format": form, "bytes": export["bytes"], "kl_per_token": export["kl_per_token"]}
        same = {"verdicts": [shown_verdict(each) for each in compared], "as_chat": reply["reply"].strip() == answer}
        shell.keep("exports", what | same | reply)


def table(steps: list[dict[str, Any]]) -> str:
    """Steps with their keystrokes and seconds, and the sums of each part."""
    rows: list[tuple[str, ...]] = []
    for part in dict.fromkeys(step["part"] for step in steps):
        own = [step for step in steps if step["part"] == part and step["keystrokes"]]
        rows += [
            (part if number == 0 else "", step["step"], f"`{step['command']}`", str(step["keystrokes"]),
             f"{step['seconds']:.0f}")
            for number, step in enumerate(own)
        ]  # fmt: skip
        if len(own) > 1:
            sums = sum(step["keystrokes"] for step in own), sum(step["seconds"] for step in own)
            rows.append(("", "**together**", "", f"**{sums[0]}**", f"**{sums[1]:.0f}**"))
    return markdown_table(("Part", "Step", "Command", "Keystrokes", "Seconds"), rows, "Keystrokes,Seconds")


def exports_table(exports: list[dict[str, Any]]) -> str:
    """What each export is, and whether plain libraries made of it what the stage itself says."""
    rows = [
        (export["chain"], export["format"], f"{export['bytes'] / 1e6:.2f}",
         ", ".join(dict.fromkeys(export["verdicts"])) or "not compared: the same weights",
         "the same" if export["as_chat"] else "another", str(export["tokens"]))
        for export in exports
    ]  # fmt: skip
    header = ("Set", "Format", "MB", "Against the stage", "Its greedy reply, against `rlhf chat`", "Tokens")
    return markdown_table(header, rows, "MB,Tokens")


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    where, steps = result["environment"], result["steps"]
    whole = sum(step["seconds"] for step in steps)
    loads = sorted(step["load"] for step in steps)
    threads = f"{where['torch_threads']} thread{'s' if where['torch_threads'] > 1 else ''}"
    machine = (
        f"{where['processor'] or where['machine']}, {where['cpus']} cores, {threads} of torch, no GPU. The machine's "
        f"load was {loads[0]} to {loads[-1]} when a command began, {loads[len(loads) // 2]} at the median; above the "
        "number of cores, other programs took a part of the time."
    )
    count = sum(step["keystrokes"] for step in steps)
    total = f"{count:,} keystrokes and {duration(whole)} in all."
    return "\n\n".join([textwrap.fill(f"{total} {machine}", 120), table(steps), exports_table(result["exports"])])


def main() -> None:
    """Install, type, load, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="JSONL of Anthropic's HH, maybe gzipped")
    parser.add_argument("--maths", type=Path, required=True, help="folder of GSM8K: train and test, JSONL")
    parser.add_argument("--limit", type=int, default=200, help="rows of each file (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=256, help="replies that PPO samples (default: %(default)s)")
    parser.add_argument("--torch", default="torch==2.13.0", help="what is installed first (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--skip-quickstart", action="store_true", help="lay its files and do not run it")
    parser.add_argument("--keep", type=Path, help="new folder of the environment and the runs (default: deleted)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/first_hour.json", help="result file")
    parser.add_argument("--page", type=Path, help="page whose section `first hour` is written, docs/first-hour.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = first_hour(asked, (asked.keep or Path(scratch)).resolve() / "mine")
    print(section(result))
    if asked.page:
        write_section(asked.page, "first hour", section(result))


def first_hour(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts, one after the other."""
    folder.mkdir(parents=True)
    where = environment() | ({} if asked.threads is None else {"torch_threads": asked.threads})
    result: dict[str, Any] = {"environment": where, "steps": [], "exports": []}
    shell = Typed(folder, folder / "env/bin", asked.threads, asked.out, result)
    install(shell, asked.torch)
    shutil.copy(asked.pairs, folder)
    shutil.copytree(asked.maths, folder / asked.maths.name)
    if asked.skip_quickstart:
        shell.run("Quickstart", "its files alone", "rlhf quickstart --no-run")
    else:
        shell.run("Quickstart", "all of it", "rlhf quickstart")
    for chain in (
        Chain("Pairs", asked.pairs.name, "sft,dpo", "int8", "How do I bake bread?"),
        Chain("Maths", asked.maths.name, "sft,ppo", "gguf-q8_0", "Tom has 3 boxes of 4 pens. How many pens has he?",
              f"stages.ppo.total_episodes={asked.episodes}"),
    ):  # fmt: skip
        follow(shell, chain, asked.limit)
    return result


if __name__ == "__main__":
    main()
