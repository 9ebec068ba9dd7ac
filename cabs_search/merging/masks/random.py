"""Random draws that depend on names alone."""

from __future__ import annotations

import hashlib

import numpy as np

from cabs_search.merging.masks.top_k import Bools, Floats


def draw_mask(
    stream: str, seed: int, tensor: str, expert: str, weights: Floats, density: float
) -> Bools:
    """Bernoulli draws that depend on what is named here and on no order; a weight that is exactly 0
    is never kept.
    """
    digest = hashlib.blake2b(f"{stream} {seed} {tensor} {expert}".encode(), digest_size=16).digest()
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw((len(weights) + 1) // 2)
    found: Bools = raw.view(np.uint32)[: len(weights)] < np.float64(density) * 2.0**32
    found &= weights != 0
    return found
