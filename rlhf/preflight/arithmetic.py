"""What a training step costs by arithmetic: numbers of a Llama, its operations, its bytes in memory and on the links.

Pure functions, without torch. A product of [m, k] and [k, n] counts 2mkn operations. Bytes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BF16, FP32 = 2, 4
"""Bytes of a number."""
ADAM = 2 * FP32
"""Bytes that AdamW keeps for a trained number: two means."""
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Dense bf16 operations a second of NVIDIA's data sheets, by a part of the GPU's name (SXM, without sparsity)."""


@dataclass(frozen=True)
class Shape:
    """What decides the operations of a model of any family."""

    layers: int
    hidden: int
    matrices: int
    """Numbers of all layers' matrices that a token is multiplied with."""
    head: int
    """Numbers of the language-model head."""


@dataclass(frozen=True)
class Model:
    """A Llama, as its config describes it."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    """Whether the head is the embedding."""

    @property
    def kv(self) -> int:
        """Numbers of a token's keys, and of its values, in a layer."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's seven matrices: q, k, v, o, gate, up, down."""
        d, f = self.hidden, self.intermediate
        return [(d, d), (d, self.kv), (d, self.kv), (d, d), (d, f), (d, f), (f, d)]

    @property
    def layer(self) -> int:
        """Numbers of a layer: matrices and two norms."""
        return sum(rows * columns for rows, columns in self.products) + 2 * self.hidden

    @property
    def matrices(self) -> int:
        """Numbers of all layers' matrices."""
        return self.layers * sum(rows * columns for rows, columns in self.products)

    @property
    def head(self) -> int:
        """Numbers of the head, and of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def numbers(self) -> int:
        """All: layers, embedding, last norm, and the head if it is not tied."""
        return self.layers * self.layer + self.head * (1 if self.tied else 2) + self.hidden

    def adapter(self, rank: int) -> int:
        """Numbers of a LoRA adapter on all matrices of all layers: r (inputs + outputs) each."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.products)

    @property
    def cache(self) -> int:
        """Numbers that a token leaves in the cache: keys and values of every layer."""
        return 2 * self.layers * self.kv


LLAMA_8B = Model(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocabulary=128256)
LLAMA_70B = Model(layers=80, hidden=8192, intermediate=28672, heads=64, kv_heads=8, vocabulary=128256)
"""Llama 3.1; 8,030,261,248 and 70,553,706,496 numbers, as its model cards say."""


def forward_flops(model: Model | Shape, length: int, logits: int = 0) -> float:
    """Operations of a forward pass over one sequence: 2 a number of the layers' matrices and token, and attention.

    Causal attention is QKᵀ and its product with V over the tokens up to each: 4 d T(T + 1)/2 a layer.

    Args:
        model: The model.
        length: Tokens.
        logits: Positions at which the head runs.
    """
    attention = model.layers * 4 * model.hidden * length * (length + 1) / 2
    return 2.0 * model.matrices * length + attention + 2.0 * model.head * logits


def passes(lora: bool) -> float:
    """Operations of forward and backward over those of forward: 3, or 2 where the frozen weights need no gradient.

    The adapters' own products are left out: (inputs + outputs) r of inputs · outputs, 1% at 8B and r 16.
    """
    return 2.0 if lora else 3.0


def preference_flops(
    model: Model, pairs: Iterable[tuple[int, int]], *, lora: bool, reference: bool, head: bool
) -> float:
    """Operations of an epoch of DPO (with a reference and a head) or of a reward model, each side by itself.

    Args:
        model: The model.
        pairs: Of each side of each pair its tokens, and those of its completion.
        lora: Whether an adapter is trained.
        reference: Whether a reference computes the same once more.
        head: Whether the head runs, at the completion's tokens.
    """
    return sum(
        forward_flops(model, length, completion if head else 0) * (passes(lora) + reference)
        for length, completion in pairs
    )


def ppo_flops(
    model: Model, sequences: Iterable[tuple[int, int]], *, lora: bool, epochs: int, critic: str = "separate"
) -> float:
    """Operations of a rollout with its optimizer steps, every completion with its prompt by itself.

    Sampling, the reward model's and the reference's pass; with a critic of its own its pass, and its forward and
    backward in each epoch beside the policy's. A shared critic has its pass over the rollout, and no more.

    Args:
        model: The model; the reward model and the critic are its like without a head.
        sequences: Of each completion the tokens with its prompt's, and its own.
        lora: Whether adapters are trained.
        epochs: How often the rollout is gone through.
        critic: `separate` or `shared`.
    """
    total = 0.0
    for length, completion in sequences:
        body, whole = forward_flops(model, length), forward_flops(model, length, completion)
        trained = whole + (body if critic == "separate" else 0.0)
        total += 2 * whole + 2 * body + epochs * passes(lora) * trained
    return total


def gathered(numbers: int, size: int, processes: int) -> float:
    """Bytes that a process receives when weights sharded over N are gathered, or their gradients scattered: (N − 1)/N.

    Args:
        numbers: Of the whole.
        size: Bytes of one.
        processes: N.
    """
    return numbers * size * (processes - 1) / processes


def reduced(numbers: int, size: int, processes: int) -> float:
    """Bytes that a process receives in an all-reduce, which scatters and gathers: 2 (N − 1)/N."""
    return 2 * gathered(numbers, size, processes)


def step_bytes(model: Model, rank: int | None, reference: bool, size: int, processes: int) -> float:
    """Bytes that a process receives in an optimizer step of SFT or DPO, in one micro-batch.

    Layers and embedding are gathered forward, backward and for the reference. The head stays from forward to backward.
    Adapters are sharded and gathered with their layers. Gradients of what is trained are scattered.

    Args:
        model: The shapes.
        rank: Of the adapters; None if all weights are trained.
        reference: Whether a reference computes the same.
        size: Bytes of a weight as it is gathered, and of a gradient of one.
        processes: Of the launch.
    """
    adapters = 0 if rank is None else model.adapter(rank)
    numbers = (2 + reference) * (model.numbers + adapters) - model.head
    return gathered(numbers + (model.numbers if rank is None else adapters), size, processes)


def ppo_step_bytes(
    model: Model, rank: int | None, critic: str, size: int, processes: int, micro_batches: float = 1.0
) -> float:
    """Bytes that a process receives in an optimizer step of PPO.

    The critic has no head. With LoRA nothing is computed backward through the embedding, and the adapters' gradients
    are all-reduced in float32. With all weights, everything is gathered twice and its gradients are scattered.

    Args:
        model: Shapes of policy and critic.
        rank: Of the adapters; None if all weights are trained.
        critic: `separate` or `shared`.
        size: Bytes of a weight as it is gathered, and of a gradient of one.
        processes: Of the launch.
        micro_batches: Of the step.
    """
    roles = 2 if critic == "separate" else 1
    layers = model.numbers - 2 * model.head
    if rank is None:
        trained = roles * model.numbers - (roles - 1) * model.head
        numbers, gradients = 2 * trained, gathered(trained, size, processes)
    else:
        numbers = roles * (2 * layers + model.head) + 2 * model.head
        gradients = roles * reduced(model.adapter(rank), FP32, processes)
    return micro_batches * gathered(numbers, size, processes) + gradients


def activations(model: Model, tokens: int, checkpointing: bool) -> float:
    """Bytes of bf16 that forward keeps for backward, attention never holding all pairs.

    A layer keeps of a token the inputs of its norms, products and attention, the gate, the product before `down`, and
    what attention gave: 7d + 2 kv + 3f numbers. With checkpointing it keeps its input, and one layer at a time has all.

    Args:
        model: The model.
        tokens: Of a micro-batch.
        checkpointing: Whether a layer is computed again in backward.
    """
    layer = 7 * model.hidden + 2 * model.kv + 3 * model.intermediate
    kept = model.layers * model.hidden + layer if checkpointing else model.layers * layer
    return BF16 * tokens * float(kept)


def logits(model: Model, positions: int) -> float:
    """Bytes of logits at their peak: bf16, float32, and the gradient of the latter."""
    return float(positions * model.vocabulary * (BF16 + 2 * FP32))


def peak_flops(name: str) -> float | None:
    """Dense bf16 operations a second of a GPU by its name; None for one that is not known."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
