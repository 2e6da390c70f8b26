"""Started by torchrun on two CPU processes: a folded model whose weights FSDP2 shards, against the whole one.

The processes' batches fold into different numbers of rows: were a batch cut here, one would wait for the other forever.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rlhf.prefix_sharing.fold import fold
from tests.support.families import causal
from tests.support.launches import leave_together

PROMPT = [5, 9, 30, 31, 8, 12, 44]
BATCHES = [
    [[*PROMPT, 3], [*PROMPT, 4, 6, 7], [*PROMPT, 7, 8], [*PROMPT, 9]],
    [[3, 4, 5], [6, 7, *range(10, 50)], [8, 9, 10, 11, 12], [10, 11, *range(12, 40)]],
]


def loss(model: torch.nn.Module, rows: list[list[int]]) -> torch.Tensor:
    """Minus the mean log-probability of all tokens but the first of each row."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[1] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -(log_probs * mask[:, 1:]).sum() / mask[:, 1:].sum()


def main() -> None:
    """Compare; an assertion fails on any process."""
    dist.init_process_group("gloo")
    whole = causal("llama")
    (sum(loss(whole, rows) for rows in BATCHES) / len(BATCHES)).backward()
    parts = causal("llama")
    folded = fold(parts)
    assert folded.reason is None
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in parts.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(parts, mesh=mesh)
    loss(parts, BATCHES[dist.get_rank()]).backward()
    for (name, shard), expected in zip(parts.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(
            shard.grad.full_tensor(),
            expected.grad,
            atol=1e-5,
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    print("equal", flush=True)
    leave_together()


if __name__ == "__main__":
    main()
