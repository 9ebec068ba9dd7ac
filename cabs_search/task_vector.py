"""Task vectors: expert minus base, in float32 whatever the files hold (Task Arithmetic, arXiv 2212.04089)."""

from __future__ import annotations

import torch
from torch import Tensor

from cabs_search.checkpoint import Checkpoint


def task_vector(base: Checkpoint, expert: Checkpoint, name: str) -> Tensor:
    """τ of one tensor: float32, the tensor's shape.

    Subtracting after the conversion matters: in half precision a small change would round to zero.

    Raises:
        ValueError: the expert or the base holds a value that is not finite.

    """
    delta = expert.read(name).to(torch.float32) - base.read(name).to(torch.float32)
    if not torch.isfinite(delta.sum()) and not torch.isfinite(delta).all():  # the sum first: no second pass, no copy
        raise ValueError(f"{expert.folder}: every weight must be finite, but {name} minus the base's is not")
    return delta
