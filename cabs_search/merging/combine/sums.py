"""Sums of pruned task vectors on one tensor: merged = base + Σ λᵢ·maskᵢ⊙τᵢ, in float32.

A resident model and a fresh merge run this same code and have the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.common.formats import first_line
from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.packed import STRIDE, Packed

JOB = 1 << 20
"""Weights given to a thread at a time, about; a multiple of STRIDE."""


@cache
def kernels() -> Any:
    """Load ``merging.combine.kernels``; None if numba is not installed or does not work."""
    try:
        from cabs_search.merging.combine import kernels

        kernels.check()
    except ImportError:
        return None
    except Exception as error:  # such as a damaged file in the folder of compiled code
        warnings.warn(
            f"numba does not work here, torch adds up instead: {first_line(error)}", stacklevel=2
        )
        return None
    return kernels


@dataclass(frozen=True, eq=False)
class Placed:
    """Kept weights of one tensor, unpacked for torch."""

    values: Tensor
    """Float32, [kept]."""
    positions: Tensor | None
    """Int32 or, in tensors of 2³¹ weights and more, int64, [kept]; None: everywhere."""

    @classmethod
    def of(cls, packed: Packed, device: torch.device) -> Placed:
        """Unpack on a device."""
        kept = packed.kept()
        values = kept.values.to(device)
        if kept.positions is None:
            return cls(values, None)
        dtype = torch.int32 if packed.numel < 1 << 31 else torch.int64
        return cls(values, kept.positions.to(dtype).to(device))

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self.values.nbytes + (0 if self.positions is None else self.positions.nbytes)


@dataclass(frozen=True, eq=False)
class TensorSum:
    """One tensor that becomes base + Σ λᵢ·τ̃ᵢ, in float32; the base may have a factor, too.

    Products are added vector after vector, then the base's value: the bits are the same in a
    resident model and in a fresh merge, by numba and by torch.
    """

    out: Tensor
    """Tensor to write, flat, any floating dtype."""
    base: Tensor
    """Values of the base, flat, any floating dtype."""
    vectors: tuple[Packed | Placed, ...]
    """Vectors that keep something, at least one; ``Placed`` on a GPU."""
    of_base: float = 1.0
    """Factor of the base's values."""

    @cached_property
    def _packed(self) -> _Arguments | None:
        packed = [v for v in self.vectors if isinstance(v, Packed)]
        return _Arguments(packed) if len(packed) == len(self.vectors) and kernels() else None

    @property
    def parts(self) -> list[slice]:
        """Slices of the tensor that can be written independently."""
        return chunks(len(self.out), JOB) if self._packed else [slice(0, len(self.out))]

    def write(self, lambdas: Sequence[float], part: slice) -> None:
        """Write a slice; ``lambdas`` has one value for each vector."""
        if self._packed is None:
            # -0.0 and not 0.0: -0.0 + x is x, whatever x is
            total = torch.full_like(self.out, -0.0, dtype=torch.float32)
            for vector, lambda_ in zip(self.vectors, lambdas, strict=True):
                placed = (
                    Placed.of(vector, self.out.device) if isinstance(vector, Packed) else vector
                )
                scaled = placed.values * lambda_
                if placed.positions is None:
                    total += scaled
                else:
                    total.index_add_(0, placed.positions, scaled)
            self.out.copy_(total.add_(self._scaled_base(slice(None))))
        elif self.out.dtype == self.base.dtype == torch.float32 and self.of_base == 1:
            self._packed.write(self.out, self.base, lambdas, part)
        else:
            total = torch.empty(part.stop - part.start)
            self._packed.write(total, None, lambdas, part, first=part.start)
            self.out[part] = total.add_(self._scaled_base(part))

    def _scaled_base(self, part: slice) -> Tensor:
        values = self.base[part].float()
        return values if self.of_base == 1 else values * self.of_base

    def inner_products(self, gradient: Tensor) -> npt.NDArray[np.float64]:
        """Return ⟨gradient, τ̃ᵢ⟩ of each vector: the loss's gradient in λᵢ on this tensor.

        Products of float32 are summed in float64; a gradient in half precision is widened.

        Args:
            gradient: the loss's gradient in this tensor, of its size and device, any floating
                dtype.

        Returns:
            [vectors].

        """
        flat = gradient.reshape(-1)
        if self._packed is None:
            flat = flat if flat.dtype == torch.float64 else flat.float()
            products = [_inner_product(flat, vector) for vector in self.vectors]
            return np.asarray(torch.stack(products).cpu().numpy())
        of_packed = self._packed
        parts = chunks(len(flat), CHUNK)  # equal for any number of threads, so that bits are too
        found = parallel_map(lambda part: of_packed.inner_products(flat[part], part), parts)
        return np.asarray(np.sum(found, axis=0))


def _inner_product(gradient: Tensor, vector: Packed | Placed) -> Tensor:
    placed = Placed.of(vector, gradient.device) if isinstance(vector, Packed) else vector
    mine = gradient if placed.positions is None else gradient[placed.positions]
    return (mine * placed.values).sum(dtype=torch.float64)


class _Arguments:
    """Addresses of packed vectors, as functions of ``kernels`` take them."""

    def __init__(self, vectors: Sequence[Packed]) -> None:
        self._vectors = vectors  # kept, because the addresses are of their memory
        index = [v.offsets if v.bits is None else v.bits for v in vectors]
        code = kernels()
        kinds = [
            code.WHOLE if i is None else code.OFFSETS if v.bits is None else code.BITS
            for v, i in zip(vectors, index, strict=True)
        ]
        self._kinds = np.array(kinds, np.int8)
        self._values, self._index, self._counts = (
            np.array([0 if t is None else t.data_ptr() for t in tensors], np.int64)
            for tensors in ([v.values for v in vectors], index, [v.counts for v in vectors])
        )

    def write(
        self,
        out: Tensor,
        base: Tensor | None,
        lambdas: Sequence[float],
        part: slice,
        *,
        first: int = 0,
    ) -> None:
        """Write a slice; the sum alone without a base; ``out`` begins with weight ``first``."""
        kernels().write(
            out.data_ptr() - 4 * first,
            0 if base is None else base.data_ptr(),
            self._kinds,
            self._values,
            self._index,
            self._counts,
            self._starts(part),
            np.array(lambdas, np.float32),
            part.start,
            part.stop,
            self._vectors[0].numel,
        )

    def inner_products(self, gradient: Tensor, part: slice) -> npt.NDArray[np.float64]:
        """Return the inner product of each vector and a gradient, both over one slice."""
        is_half = gradient.element_size() < torch.float32.itemsize
        products = np.zeros(len(self._vectors))
        kernels().add_inner_products(
            products,
            (gradient.float() if is_half else gradient).numpy(),
            self._kinds,
            self._values,
            self._index,
            self._counts,
            self._starts(part),
            part.start,
            self._vectors[0].numel,
        )
        return products

    def _starts(self, part: slice) -> npt.NDArray[np.int64]:
        """Return the index of each vector's first value in a slice."""
        return np.array([v.starts[part.start // STRIDE] for v in self._vectors], np.int64)


def write_sums(sums: Sequence[tuple[TensorSum, Sequence[float]]]) -> None:
    """Write whole tensors, each with one λ for each vector, over torch's number of threads."""
    jobs: list[list[tuple[TensorSum, Sequence[float], slice]]] = [[]]
    room = JOB
    for total, lambdas in sums:
        for part in total.parts:
            jobs[-1].append((total, lambdas, part))
            room -= part.stop - part.start
            if room <= 0:
                jobs.append([])
                room = JOB
    if all(total.out.device.type == "cpu" for total, _ in sums):
        parallel_map(_write, jobs)
    else:
        for job in jobs:
            _write(job)


def _write(job: Sequence[tuple[TensorSum, Sequence[float], slice]]) -> None:
    for total, lambdas, part in job:
        total.write(lambdas, part)
