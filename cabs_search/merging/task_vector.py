"""Task vectors: expert minus base, in float32 whatever the files hold (Task Arithmetic, arXiv
2212.04089).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.chunks import chunks, parallel_map

PROBE_SIZE = 1 << 14
"""Weights that torch does not spread over threads: those would spin a while after each look, in the
way of ours.
"""


class Delta:
    """τ of one tensor, computed where it is asked for, so that it need not be held in whole.

    Subtracting after the conversion matters: in half precision a small change would round to zero.
    """

    def __init__(
        self, tuned: Tensor, base: Tensor | None = None, error: str = "every weight must be finite"
    ) -> None:
        """``tuned`` minus ``base``, of any floating dtypes; without a base, ``tuned`` itself.

        ``error``: said where a weight is not finite.
        """
        self.shape, self.numel, self._error = tuned.shape, tuned.numel(), error
        self._tuned, self._base = (
            tuned.detach().reshape(-1),
            None if base is None else base.reshape(-1),
        )

    def part(self, part: slice) -> Tensor:
        """Some weights in row-major order: float32, flat. Raises ValueError where one is not
        finite.
        """
        found = self._tuned[part].to(torch.float32)
        if self._base is not None:
            found = found - self._base[part].to(torch.float32)
        if (
            not torch.isfinite(found.sum()) and not torch.isfinite(found).all()
        ):  # the sum first: it is one pass less
            raise ValueError(self._error)
        return found

    def whole(self) -> Tensor:
        """Every weight: float32, the tensor's shape."""
        found = torch.empty(self.numel)
        parallel_map(lambda part: found[part].copy_(self.part(part)), chunks(self.numel))
        return found.reshape(self.shape)

    def is_zero(self) -> bool:
        """Whether the expert left the tensor as it was."""
        return not any(
            self.part(part).any() for part in chunks(self.numel, PROBE_SIZE)
        )  # most often the first one tells


def task_vector(base: Checkpoint, expert: Checkpoint, name: str) -> Delta:
    """τ of one tensor; reading it raises ValueError where the expert or the base is not finite."""
    error = f"{expert.folder}: every weight must be finite, but {name} minus the base's is not"
    return Delta(expert.read(name), base.read(name), error)
