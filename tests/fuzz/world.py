"""The good inputs that are spoilt: small models, a project on small files, and a finished run of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.sandbox import Box, Sandbox
from tests.support.projects import chats, pairs, write_rows
from tests.support.votes import cast_votes

TEXTS = ["Hello Ada, your lamp 0123456789 is on its way.", "user assistant system: no idea at all; thank you, kettle."]
STEP = {"max_steps": 1, "learning_rate": 1.0e-3, "save_strategy": "no"}
ONLINE = {
    "total_episodes": 4, "per_device_train_batch_size": 4, "max_new_tokens": 4, "normalize_samples": 4,
    "learning_rate": 1.0e-3, "save_strategy": "no",
}  # fmt: skip

JUDGE = b"""\
def score(prompts, completions, **columns):
    return [float(len(completion if isinstance(completion, str) else completion[-1]["content"]))
            for completion in completions]
"""
PROJECT: dict[str, Any] = {
    "name": "tiny",
    "model": {"name_or_path": "model", "adapter": {"r": 2}},
    "data": {
        "demonstrations": {"source": "pairs.jsonl"},
        "preferences": {"source": "pairs.jsonl", "holdout": 0.3},
    },
    "rewards": {"long": {"function": "judge.py:score"}},
    "stages": {"sft": STEP, "reward": STEP, "dpo": STEP},
    "evaluate": {"prompts": 2, "samples": 1, "max_new_tokens": 4},
}


def write_yaml(tree: Any) -> bytes:
    """A tree as the bytes of a YAML file."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()


def make_world(folder: Path) -> Path:
    """Make `project/`, the files that all inputs find.

    The models are made in a process of their own, so that nothing of theirs is in the memory that is forked.
    """
    project = folder / "project"
    project.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "tests.fuzz.world", str(project)], check=True, capture_output=True)
    write_rows(project / "pairs.jsonl", pairs(24))
    write_rows(project / "chats.jsonl", chats(24))
    (project / "judge.py").write_bytes(JUDGE)
    (project / "project.yaml").write_bytes(write_yaml(PROJECT))
    return folder


def finish_run(world: Path, sandbox: Sandbox) -> None:
    """Make `run/`, the folder `runs` of the project once it has run and people have voted."""
    box = Box(world / "first").make()
    shutil.copytree(world / "project", box.work, dirs_exist_ok=True)
    ended = sandbox.run(box, ("run", "project.yaml"), 600, trains=True)
    assert ended.code == 0, box.read("stderr")
    judged = [(row["prompt"], " Hello.", " No idea.", "first") for row in pairs(6)]
    cast_votes(box.work / "runs/tiny", judged)
    shutil.copytree(box.work / "runs", world / "run")
    shutil.rmtree(box.folder)


def _models(folder: Path) -> None:
    """A causal model, a classifier, a span reader's encoder, an encoder with a decoder and an image encoder."""
    import torch
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    from rlhf.models.scratch import train_tokenizer
    from tests.support.models import save_classifier

    torch.manual_seed(0)
    tokenizer = train_tokenizer(iter(TEXTS), 300)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": end, "pad_token_id": pad}
    llama = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None, **sizes,
    )  # fmt: skip
    t5 = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=pad, **sizes)
    vit = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=2,
    )  # fmt: skip
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    bert = BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    BertModel(bert).save_pretrained(folder / "bert")
    words.save_pretrained(folder / "bert")
    for model, name in ((LlamaForCausalLM(llama), "model"), (T5ForConditionalGeneration(t5), "t5")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_classifier(folder / "model", folder / "classifier", ("bad", "good"))
    save_classifier(folder / "model", folder / "scorer", ("score",))
    ViTForImageClassification(vit).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")
    for number in range(8):
        path = folder / f"images/{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 255 * (number % 2)).save(path)


if __name__ == "__main__":
    _models(Path(sys.argv[1]))
