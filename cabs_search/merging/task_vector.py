"""Task vectors: expert minus base, in float32 whatever the files hold (arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cabs_search.checkpoints.adapter import Adapter, Expert
from cabs_search.checkpoints.checkpoint import Checkpoint, all_finite
from cabs_search.checkpoints.vocabulary import TOKEN_ROWS
from cabs_search.merging.chunks import chunks, parallel_map

PROBE_SIZE = 1 << 14
"""Chunk size of the zero test: so small that torch starts no threads of its own, for which
ours would wait.
"""
NOT_FINITE = "every weight must be finite"


class Delta:
    """τ of one tensor, computed part by part when it is read, so that it need not be held
    whole.

    Both sides become float32 before they are subtracted: in half precision a small change would
    round to zero.
    """

    def __init__(
        self,
        tuned: Tensor,
        base: Tensor | None = None,
        error: str = NOT_FINITE,
        *,
        origin: Tensor | None = None,
        check: bool = True,
    ) -> None:
        """Prepare ``tuned`` minus ``base``; nothing is read.

        Args:
            tuned, base: of any floating dtypes, one shape; no base: ``tuned`` itself. ``tuned`` may
                have fewer rows than the base: τ of the others is 0.
            error: message if a weight is not finite.
            origin: the base, where ``tuned`` is the difference already.
            check: whether weights must be finite.

        """
        whole = tuned if base is None else base
        self.shape, self.numel = whole.shape, whole.numel()
        self._error, self._check = error, check
        self._tuned = tuned.detach().reshape(-1)
        self._base = None if base is None else base.reshape(-1)
        self._origin = origin if base is None else base

    def part(self, part: slice, out: Tensor | None = None) -> Tensor:
        """Read some weights in row-major order: float32, flat. Raises ValueError if one is not
        finite. ``out`` receives them, if given.
        """
        tuned = self._tuned[part]
        count = len(range(self.numel)[part])
        values = torch.empty(count) if out is None else out
        common, rest = values[: len(tuned)], values[len(tuned) :]
        common.copy_(tuned)
        rest.zero_()
        if self._base is not None:
            common.sub_(self._base[part][: len(tuned)].to(torch.float32))
        if self._check and not all_finite(values):
            raise ValueError(self._error)
        return values

    def whole(self) -> Tensor:
        """Read every weight: float32, the tensor's shape."""
        values = torch.empty(self.numel)
        parallel_map(lambda part: self.part(part, values[part]), chunks(self.numel))
        return values.reshape(self.shape)

    def base(self) -> Tensor:
        """Return the base's values: of its dtype, the tensor's shape; zeros if there is no base."""
        return torch.zeros(self.shape) if self._origin is None else self._origin

    def is_zero(self) -> bool:
        """Tell whether the expert left the tensor as it was; mostly the first chunk tells."""
        return not any(self.part(part).any() for part in chunks(self.numel, PROBE_SIZE))


def task_vector(base: Checkpoint, expert: Expert, name: str, rows: int | None = None) -> Delta:
    """Return τ of one tensor; reading it raises ValueError if expert or base is not finite.

    Args:
        base, expert: the two.
        name: of the tensor.
        rows: number of rows of tokens that both have, τ of others is 0; None: all.

    """
    error = f"{expert.folder}: {NOT_FINITE}, but {name} minus the base's is not"
    if isinstance(expert, Adapter) and (update := expert.update(name)) is not None:
        return Delta(update, error=error, origin=base.read(name))
    tuned = expert.read(name)
    tuned = tuned[:rows] if TOKEN_ROWS.search(name) else tuned
    return Delta(tuned, base.read(name), error)


@dataclass(frozen=True)
class TaskVector(Mapping[str, Delta]):
    """τ of every shared tensor of one expert, by name; read when it is asked for."""

    base: Checkpoint
    expert: Expert
    tensors: tuple[str, ...]
    rows: int | None = None
    """Number of rows of tokens that base and expert have; None: all."""

    def __getitem__(self, name: str) -> Delta:
        return task_vector(self.base, self.expert, name, self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
