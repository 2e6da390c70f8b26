"""Near-duplicates: how similar two texts are, and which texts are worth comparing.

Similarity is the Jaccard index of the texts' shingles. Comparing all pairs would be quadratic; MinHash with banding
(Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", 3.4) leaves few pairs to compare.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasketch import MinHash
    from numpy.typing import NDArray

THRESHOLD = 0.8
"""Jaccard similarity from which two texts are near-duplicates."""

BANDS, BAND_SIZE = 12, 5
"""Two texts of similarity s share a band with probability 1 - (1 - s^5)^12: 0.99 at 0.8, 0.32 at 0.5, 0.03 at 0.3."""

_WORDS, _CHARACTERS = 3, 4
_FEW_WORDS, _LONG_WORD = 8, 12
_WORD = re.compile(r"\w+")


def shingles(text: str) -> NDArray[np.uint32]:
    """The shingles of a text: hashes of its runs of three words, sorted, each once.

    Case, punctuation and white space are ignored. Texts of fewer than eight words, and texts without spaces between
    words (Chinese, Thai), are cut into runs of four characters instead.

    Args:
        text: Any text.

    Returns:
        Hashes, [K]; empty for a text without letters or digits.
    """
    words = _WORD.findall(text.casefold())
    parts, joint, size = words, " ", _WORDS
    if len(words) < _FEW_WORDS or sum(map(len, words)) > _LONG_WORD * len(words):
        parts, joint, size = list(" ".join(words)), "", _CHARACTERS
    if not parts:
        return np.empty(0, np.uint32)
    runs = (joint.join(parts[start : start + size]) for start in range(max(1, len(parts) - size + 1)))
    return np.unique(np.fromiter((zlib.crc32(run.encode()) for run in runs), np.uint32))


def jaccard(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """The share of two texts' shingles that they have in common, |A ∩ B| / |A ∪ B|, in [0, 1].

    Args:
        first: Shingles of a text, [K], each once.
        second: Shingles of another text, [L], each once.

    Returns:
        The similarity; 0 if neither text has any.
    """
    both = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - both
    return both / either if either else 0.0


def band_keys(hashes: NDArray[np.uint32]) -> list[int]:
    """Keys of a text's bands: near-duplicates almost always share a key, different texts hardly ever.

    Args:
        hashes: Shingles of a text, [K], K > 0.

    Returns:
        A signed 64-bit integer for each band of the text's MinHash signature, [BANDS].
    """
    sketch = _unhashed().copy()
    sketch.update_batch(hashes)
    bands = sketch.hashvalues.reshape(BANDS, BAND_SIZE)
    return [
        int.from_bytes(hashlib.blake2b(bytes([number]) + band.tobytes(), digest_size=8).digest(), "big", signed=True)
        for number, band in enumerate(bands)
    ]


@cache
def _unhashed() -> MinHash:
    """An empty signature to copy, so that all texts share its permutations. Shingles are hashes already."""
    from datasketch import MinHash

    return MinHash(num_perm=BANDS * BAND_SIZE, seed=1, hashfunc=_same)


def _same(value: Any) -> Any:
    return value
