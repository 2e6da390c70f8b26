"""Changes of a row that leave its class as it is, drawn anew each time that a training batch has the row.

They draw from torch's default generator, which the trainer seeds for each batch, so that a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

_SHIFT = 8
_NOISE = 0.1
_DROPPED = 0.1


def shift(pixels_CHW: torch.Tensor) -> torch.Tensor:
    """An image moved by up to an eighth of its height and width; what comes into view repeats the edge.

    Args:
        pixels_CHW: The image, [channels, height, width].
    """
    height, width = pixels_CHW.shape[-2:]
    reach = (height // _SHIFT, width // _SHIFT)
    down, right = (int(torch.randint(0, 2 * most + 1, ())) for most in reach)
    padded = nn.functional.pad(pixels_CHW[None], (reach[1], reach[1], reach[0], reach[0]), mode="replicate")[0]
    return padded[:, down : down + height, right : right + width]


def noise(pixels_CHW: torch.Tensor) -> torch.Tensor:
    """An image with normal noise of standard deviation 0.1 on each value, in units of the normalised values.

    Args:
        pixels_CHW: The image, [channels, height, width].
    """
    return pixels_CHW + _NOISE * torch.randn_like(pixels_CHW)


def word_dropout(ids: Sequence[int], special: Collection[int]) -> list[int]:
    """A text without a tenth of its tokens; at least one stays, and special tokens all do.

    Args:
        ids: The text's tokens.
        special: The ids of special tokens.

    Source: Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text Classification" (2015),
        section 3.1.
    """
    words = [place for place, token in enumerate(ids) if token not in special]
    dropped = {place for place, draw in zip(words, torch.rand(len(words)).tolist(), strict=True) if draw < _DROPPED}
    if len(dropped) == len(words):
        dropped -= set(words[:1])
    return [token for place, token in enumerate(ids) if place not in dropped]


IMAGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"shift": shift, "noise": noise}
"""What changes images, by name."""
TEXT: dict[str, Callable[[Sequence[int], Collection[int]], list[int]]] = {"word_dropout": word_dropout}
"""What changes texts, by name."""
