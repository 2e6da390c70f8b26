"""Train the small base model and its tokenizer from nothing, on the generated text of corpus.py.

    python data/base/train.py

Needs torch, transformers and tokenizers. README.md has the time it takes and the copying accuracy it ends with.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from corpus import COMMON, Corpus, Example
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD, USER, ASSISTANT, SYSTEM = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- '<|' + message['role'] + '|>' + message['content'] -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
IGNORED = -100


def train_tokenizer(vocab_size: int, seed: int, texts: int = 20000) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE in which each digit is a token of its own."""
    corpus = Corpus(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    messages = [message["content"] for _ in range(texts) for message in corpus.example().messages]
    # Templates hold few of the common words; counted often, each becomes a token and ordinary text stays short.
    messages += [f" {word} {word.capitalize()}" for word in COMMON] * 100
    tokenizer.train_from_iterator(messages, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the untrained model: rotary positions copy better at this size than learned ones."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], list[int]]:
    """Tokenize an example; labels are the replies' tokens with their end, everything else is ignored."""
    special = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant", "system")}
    ids: list[int] = []
    labels: list[int] = []
    for message in example.messages:
        content = tokenizer.encode(message["content"], add_special_tokens=False)
        reply = message["role"] == "assistant"
        content += [tokenizer.eos_token_id] if reply else []
        ids += [special[message["role"]], *content]
        labels += [IGNORED, *(content if reply else [IGNORED] * len(content))]
    return ids, labels


def batches(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus, size: int, pool: int = 16
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, labels), both [size, T], from length-sorted pools of examples so that little padding is needed."""
    rng = random.Random(0)
    while True:
        rows = sorted((encode(tokenizer, corpus.example()) for _ in range(size * pool)), key=lambda row: len(row[0]))
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            longest = max(len(ids) for ids, _ in chunk)
            ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row, _ in chunk]
            labels = [row + [IGNORED] * (longest - len(row)) for _, row in chunk]
            yield torch.tensor(ids), torch.tensor(labels)


def reply_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss on reply tokens (nats a token); the head runs only where a label is.

    Rows are padded on the right and attention is causal: no reply sees padding, so no attention mask is needed.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    labelled = labels[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[labelled]), labels[:, 1:][labelled])


def build_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which takes about half the steps that AdamW takes here; AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=lr / 4, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, size: int, lr: float, seed: int
) -> None:
    """Train on replies only, with a short warm-up and a linear decay to zero."""
    optimizers = build_optimizers(model, lr)

    def factor(step: int) -> float:
        return min((step + 1) / 50, 1 - step / steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    data = batches(tokenizer, Corpus(seed, warmup=size * steps // 5), size)
    start, recent = time.time(), []
    model.train()
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = reply_loss(model, *next(data))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        model.zero_grad()
        recent.append(loss.item())
        if step % 100 == 0 or step == steps:
            print(f"step {step:5d}  loss {sum(recent) / len(recent):.3f}  {time.time() - start:5.0f} s", flush=True)
            recent = []


@torch.no_grad()
def copying_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, n: int = 200) -> float:
    """Return the share of facts asked for that the greedy replies to n new dialogues give to the letter."""
    corpus = Corpus(seed)
    model.eval()
    right = total = 0
    for example in (corpus.questions() for _ in range(n)):
        ids, _ = encode(tokenizer, Example(example.messages[:-1]))
        ids.append(tokenizer.convert_tokens_to_ids(ASSISTANT))
        out = model.generate(torch.tensor([ids]), max_new_tokens=96, do_sample=False)
        reply = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        right += sum(text.lower() in reply.lower() for text in example.copied)
        total += len(example.copied)
    return right / total


def main() -> None:
    """Read the arguments, train, save and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--vocab-size", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.vocab_size, seed=args.seed + 1)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, args.steps, args.batch_size, args.learning_rate, seed=args.seed + 2)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    accuracy = copying_accuracy(model, tokenizer, seed=args.seed + 3)
    print(json.dumps({"copying_accuracy": round(accuracy, 4), "parameters": model.num_parameters()}))


if __name__ == "__main__":
    main()
