"""Random masks that depend on names and a seed, never on order, worker or process."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from cabs_search.merging.masks.rule import Bools, TensorView


def draw_mask(
    stream: str, seed: int, view: TensorView, density: float | npt.NDArray[np.float64]
) -> Bools:
    """Draw each weight with probability ``density``, [weights]; one that is exactly 0 is never
    kept.

    ``density`` is one for all, or each weight's own. The draws are a function of (stream, seed,
    tensor's name, expert's name).
    """
    key = f"{stream} {seed} {view.tensor} {view.expert}"
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    count = len(view.weights)
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw((count + 1) // 2)
    mask: Bools = raw.view(np.uint32)[:count] < np.asarray(density, np.float64) * 2.0**32
    mask &= view.weights != 0
    return mask
