"""Which weights of a task vector are kept: mask rules as plain values, masks as pure functions of tensors.

A rule is a class below and a case in ``_prune``; everything else (names, searching its settings, the cache, the
command line) follows from the class's fields. Fields that rules share mean the same in all of them:

    density, nm   how much is kept; one value for all experts, or (expert, value) pairs
    order         experts in pruning order; a rule with this field keeps its vectors' masks apart
    overlap       what is done where they cannot be: ``fill`` from taken positions, or ``drop``
    tail          whether a last block of fewer than m weights keeps its share
    seed          of random masks, which are functions of (seed, tensor's name, expert's name)

Symbols: n, m   weights kept per block, weights per block
         τ      a task vector's tensor; read in row-major order as blocks of m, the last may be shorter
         u      positions of a block that no earlier vector kept
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.calibration import Calibration, share, sparsegpt, wanda_scores
from cabs_search.chunks import CHUNK, chunks, each
from cabs_search.task_vector import Delta

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Sizes = npt.NDArray[np.uint32]
"""Magnitudes as their bits, which are ordered alike; comparing whole numbers is much faster."""
T = TypeVar("T")
NM = tuple[int, int]
PerExpert: TypeAlias = T | tuple[tuple[str, T], ...]
"""One value for all experts, or (expert, value) pairs."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Everything: Task Arithmetic (arXiv 2212.04089) where vectors are summed."""

    name: ClassVar[str] = "task-arithmetic"


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The largest |τ| of each tensor (layer-wise)."""

    density: PerExpert[float]
    name: ClassVar[str] = "magnitude"


@dataclass(frozen=True, kw_only=True)
class RowMagnitude:
    """The largest |τ| of each row: of the weights that share a tensor's first index."""

    density: PerExpert[float]
    name: ClassVar[str] = "magnitude-row"


@dataclass(frozen=True, kw_only=True)
class VectorMagnitude:
    """The largest |τ| of the whole task vector, as TIES trims (arXiv 2306.01708); frozen tensors are no part of it."""

    density: PerExpert[float]
    name: ClassVar[str] = "magnitude-vector"


@dataclass(frozen=True, kw_only=True)
class Dare:
    """Each weight with probability d, kept ones divided by d (DARE, arXiv 2311.03099)."""

    density: PerExpert[float]
    seed: int
    name: ClassVar[str] = "dare"


@dataclass(frozen=True, kw_only=True)
class Random:
    """Each weight with probability d, as it is (the CABS paper's study of rescaling)."""

    density: PerExpert[float]
    seed: int
    name: ClassVar[str] = "random"


@dataclass(frozen=True, kw_only=True)
class RandomRescaled:
    """``Random``'s mask, kept weights divided by d: DARE by definition, with another draw."""

    density: PerExpert[float]
    seed: int
    name: ClassVar[str] = "random-rescaled"


@dataclass(frozen=True, kw_only=True)
class Wanda:
    """The largest |τ|·‖x‖₂ of each output row (arXiv 2306.11695); ``Magnitude`` where no linear layer is."""

    density: PerExpert[float]
    name: ClassVar[str] = "wanda"


@dataclass(frozen=True, kw_only=True)
class SparseGpt:
    """By second order, per output row (arXiv 2301.00774); ``Magnitude`` where no linear layer is."""

    density: PerExpert[float]
    name: ClassVar[str] = "sparsegpt"


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """The n largest |τ| of every m, each vector alone: the BS of CABS."""

    nm: PerExpert[NM]
    tail: Literal["keep", "drop"] = "keep"
    name: ClassVar[str] = "bs"


@dataclass(frozen=True, kw_only=True)
class ConflictAware:
    """The largest |τ| of each tensor among the positions no earlier vector kept: the CA of CABS."""

    density: PerExpert[float]
    order: tuple[str, ...]
    overlap: Literal["fill", "drop"] = "fill"
    name: ClassVar[str] = "ca"


@dataclass(frozen=True, kw_only=True)
class Cabs:
    """Conflict-aware and balanced sparsification (arXiv 2503.01874)."""

    nm: PerExpert[NM]
    order: tuple[str, ...]
    overlap: Literal["fill", "drop"] = "fill"
    tail: Literal["keep", "drop"] = "keep"
    name: ClassVar[str] = "cabs"


Mask = (
    Whole
    | Magnitude
    | RowMagnitude
    | VectorMagnitude
    | Dare
    | Random
    | RandomRescaled
    | Wanda
    | SparseGpt
    | Balanced
    | ConflictAware
    | Cabs
)
MASKS: dict[str, type[Mask]] = {rule.name: rule for rule in get_args(Mask)}
"""Every rule by its name."""
CALIBRATED = (Wanda, SparseGpt)
"""Rules that need a calibration pass."""


def settings(mask: Mask | type[Mask]) -> tuple[str, ...]:
    """The names of a rule's fields."""
    return tuple(f.name for f in fields(mask))


def value_for(setting: PerExpert[T], expert: str) -> T:
    """One expert's value of a setting."""
    if isinstance(setting, tuple) and setting and isinstance(setting[0], tuple):
        return cast("dict[str, T]", dict(setting))[expert]
    return cast("T", setting)


def density_of(mask: Mask, expert: str) -> float:
    """The share of an expert's vector that a rule keeps, where it has so many weights that are not 0."""
    if "nm" in settings(mask):
        n, m = value_for(cast("Cabs", mask).nm, expert)
        return n / m
    return value_for(cast("Magnitude", mask).density, expert) if "density" in settings(mask) else 1.0


def order_of(mask: Mask, experts: Sequence[str]) -> tuple[str, ...]:
    """Experts in the order a rule prunes them; the given order where it makes no difference."""
    return mask.order if isinstance(mask, (Cabs, ConflictAware)) else tuple(experts)


def identity(mask: Mask, expert: str) -> dict[str, Any]:
    """What one vector's mask depends on, beside weights and the vectors pruned before it; JSON values."""
    found = {name: value_for(getattr(mask, name), expert) for name in settings(mask) if name != "order"}
    return {"mask": mask.name, **found} | ({"expert": expert} if "seed" in found else {})


@dataclass(frozen=True, eq=False)
class Kept:
    """What one vector keeps of one tensor."""

    values: Tensor
    """Float32, [kept]; every weight of the tensor, flat, where ``mask`` is None."""
    mask: Tensor | None
    """Bool, [weights], of the flattened tensor."""

    @cached_property
    def positions(self) -> Tensor | None:
        """Int64, [kept], ascending, into the flattened tensor; None: all."""
        return None if self.mask is None else torch.from_numpy(np.flatnonzero(self.mask.numpy()))

    @classmethod
    def at(cls, positions: Tensor, values: Tensor, numel: int) -> Kept | None:
        """Of a tensor of ``numel`` weights the values at some positions; None for none."""
        mask = torch.zeros(numel, dtype=torch.bool)
        mask[positions] = True
        return cls(values, mask) if len(values) else None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a whole vector's largest |τ| end."""

    bound: int
    """What is larger is kept; the bits of a float32."""
    ties: Mapping[str, int]
    """By tensor, how many that equal the bound are kept, the first ones."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What some rules must know beyond the tensor they prune, by expert."""

    cuts: Mapping[str, Cut] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)


def keep(
    mask: Mask,
    tensor: str,
    delta: Callable[[str], Delta],
    experts: Sequence[str],
    *,
    known: Mapping[str, Kept | None] | None = None,
    survey: Survey | None = None,
) -> Iterator[tuple[str, Kept | None]]:
    """Prune one tensor of every task vector, in the order the rule prunes.

    Args:
        mask: the rule with its settings.
        tensor: the tensor's name.
        delta: gives τ of the tensor by expert, all of one shape; called only for vectors that are not known.
        experts: the experts' names, in the family's order.
        known: what some vectors keep of the tensor already.
        survey: what the rule must know of the vectors that are not known.

    Yields:
        (expert, what it keeps, or None for nothing).

    """
    found = dict(known or {})
    taken: Bools | None = None
    for expert in order_of(mask, experts):
        if expert not in found:
            found[expert] = _prune(mask, tensor, expert, delta(expert), taken, survey or Survey())
        kept = found[expert]
        if "order" in settings(mask) and kept is not None and kept.mask is not None:
            taken = kept.mask.numpy() if taken is None else taken | kept.mask.numpy()
        yield expert, kept


def _prune(mask: Mask, tensor: str, expert: str, delta: Delta, taken: Bools | None, survey: Survey) -> Kept | None:
    """What a rule keeps of one tensor of one vector."""
    if delta.is_zero():
        return None
    if isinstance(mask, (Balanced, Cabs)):
        overlap = mask.overlap if isinstance(mask, Cabs) else "fill"
        return _kept_of_blocks(delta, *value_for(mask.nm, expert), taken, overlap, mask.tail)
    tau, density = delta.whole(), density_of(mask, expert)
    weights = _flat(tau)
    match mask:
        case Whole():
            return Kept(tau.reshape(-1), None)
        case Magnitude():
            chosen = _top(weights, len(weights), density)
        case RowMagnitude():
            chosen = _top(weights, len(weights) if tau.dim() < 2 else len(weights) // tau.shape[0], density)
        case VectorMagnitude():
            chosen = _above(_sizes(weights), survey.cuts[expert], tensor)
        case Random(seed=seed):
            chosen = _drawn("random", seed, tensor, expert, weights, density)
        case RandomRescaled(seed=seed):
            chosen, tau = _drawn("random", seed, tensor, expert, weights, density), tau / density
        case Dare(seed=seed):
            chosen, tau = _drawn("dare", seed, tensor, expert, weights, density), tau / density
        case ConflictAware(overlap=overlap):
            count = share(density, len(weights))
            chosen = _next_mask(weights, count, len(weights), taken, overlap, "keep")
        case Wanda() | SparseGpt():
            chosen, tau = _calibrated(mask, tau, density, calibration_of(survey.calibrations, mask, expert), tensor)
    return kept_by(tau, torch.from_numpy(chosen))


def survey_of(
    mask: Mask,
    experts: Sequence[str],
    tensors: Mapping[str, int],
    delta: Callable[[str, str], Tensor],
    calibrations: Mapping[str, Calibration],
) -> Survey:
    """Look over whole vectors, tensor by tensor, for rules that need it.

    Args:
        experts: those whose vectors are to be pruned.
        tensors: every tensor's number of weights, in the vectors' order.
        delta: gives τ by tensor and expert.
        calibrations: statistics by expert.

    """
    cuts = {}
    if isinstance(mask, VectorMagnitude):
        for expert in experts:

            def sizes(tensor: str, expert: str = expert) -> Sizes:
                return _sizes(_flat(delta(tensor, expert)))

            cuts[expert] = _cut(sizes, tensors, value_for(mask.density, expert))
    return Survey(cuts=cuts, calibrations=calibrations)


def _cut(sizes: Callable[[str], Sizes], tensors: Mapping[str, int], density: float) -> Cut:
    """The bound above which share(density) of all weights lie, exactly, in a few passes and constant memory.

    Tensors that the expert never changed do not count, as no other rule keeps anything of them.

    One pass counts magnitudes by their upper 16 bits, one those of the bound's group by their lower 16.
    """
    upper, weights = np.zeros(1 << 16, np.int64), 0
    for found in map(sizes, tensors):
        upper += np.bincount(found >> 16, minlength=1 << 16)
        weights += len(found) if found.any() else 0
    wanted = share(density, weights)
    group, above = _reached(upper, wanted)
    lower = np.zeros(1 << 16, np.int64)
    for found in map(sizes, tensors):
        lower += np.bincount(found[found >> 16 == group] & 0xFFFF, minlength=1 << 16)
    last, more = _reached(lower, wanted - above)
    bound = group << 16 | last
    room, ties = wanted - above - more, {}
    for tensor in tensors if bound > 0 else ():
        if room == 0:
            break
        ties[tensor] = min(room, int(np.count_nonzero(sizes(tensor) == bound)))
        room -= ties[tensor]
    return Cut(bound=bound, ties=ties)


def _reached(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The group in which the ``wanted`` largest end, and how many lie above that group."""
    from_top = counts[::-1].cumsum()
    place = min(int(np.searchsorted(from_top, wanted)), len(counts) - 1)
    return len(counts) - 1 - place, int(from_top[place] - counts[::-1][place])


def _above(sizes: Sizes, cut: Cut, tensor: str) -> Bools:
    mask: Bools = sizes > cut.bound
    if room := cut.ties.get(tensor, 0):
        mask[np.flatnonzero(sizes == cut.bound)[:room]] = True
    return mask


def _top(weights: Floats, width: int, density: float) -> Bools:
    """The largest of every ``width`` weights."""
    return largest(weights.reshape(-1, width), share(density, width)).reshape(-1)


def _drawn(stream: str, seed: int, tensor: str, expert: str, weights: Floats, density: float) -> Bools:
    """Bernoulli draws that depend on what is named here and on no order; a weight that is exactly 0 is never kept."""
    digest = hashlib.blake2b(f"{stream} {seed} {tensor} {expert}".encode(), digest_size=16).digest()
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw((len(weights) + 1) // 2)
    found: Bools = raw.view(np.uint32)[: len(weights)] < np.float64(density) * 2.0**32
    found &= weights != 0
    return found


def calibration_of(calibrations: Mapping[str, Calibration], mask: Mask, expert: str) -> Calibration:
    """One expert's statistics. Raises ValueError where there are none."""
    if expert not in calibrations:
        raise ValueError(
            f"{mask.name}: every expert must have a task to take calibration items from, as it has in a study, but "
            f"{expert} has none"
        )
    return calibrations[expert]


def _calibrated(
    mask: Wanda | SparseGpt, tau: Tensor, density: float, calibration: Calibration, tensor: str
) -> tuple[Bools, Tensor]:
    """Mask and values by a rule that knows the layer's inputs; plain magnitude where the tensor has none."""
    gram = calibration.gram(tensor)
    if gram is None:
        return _top(_flat(tau), tau.numel(), density), tau
    turned = calibration.is_transposed(tensor)
    layer = tau.T.contiguous() if turned else tau
    if isinstance(mask, SparseGpt):
        values, chosen = sparsegpt(layer, gram, density)
    else:
        scores: Floats = wanda_scores(layer, gram).numpy()
        values, chosen = layer, torch.from_numpy(largest(scores, share(density, layer.shape[1])))
    if turned:
        values, chosen = values.T.contiguous(), chosen.T.contiguous()
    return chosen.reshape(-1).numpy(), values


def _kept_of_blocks(delta: Delta, n: int, m: int, taken: Bools | None, overlap: str, tail: str) -> Kept | None:
    """What n:m keeps, some whole blocks at a time: τ never leaves the cache."""
    mask = np.zeros(delta.numel, dtype=np.bool_)

    def some(part: slice) -> Floats:
        weights = _flat(delta.part(part))
        mask[part] = _next_mask(weights, n, m, None if taken is None else taken[part], overlap, tail)
        kept: Floats = weights.take(np.flatnonzero(mask[part]))
        return kept

    values = np.concatenate(each(some, chunks(delta.numel, max(1, CHUNK // m) * m)))
    return Kept(torch.from_numpy(values), torch.from_numpy(mask)) if len(values) else None


def kept_by(delta: Tensor, mask: Tensor) -> Kept | None:
    """The weights of ``delta`` that ``mask`` keeps; None where it keeps none."""
    weights, chosen = delta.reshape(-1).numpy(), mask.reshape(-1).numpy()
    values = np.concatenate(each(lambda part: weights[part].take(np.flatnonzero(chosen[part])), chunks(len(weights))))
    return Kept(torch.from_numpy(values), mask.reshape(-1)) if len(values) else None


def nm_mask(
    delta: Tensor, n: int, m: int, eligible: Tensor | None = None, *, tail: Literal["keep", "drop"] = "keep"
) -> Tensor:
    """Keep the n largest magnitudes of every m consecutive weights.

    Args:
        delta: task vector of one tensor, any shape, read in row-major order; not modified.
        n, m: weights kept per block, weights per block; density = n / m.
        eligible: bool, delta's shape; weights that may be kept. None: all.
        tail: a last block of r < m weights keeps floor(n r / m + 1/2), or nothing.

    Returns:
        Bool mask of delta's shape. Ties keep the lower index; a weight that is exactly 0 is never kept.

    Raises:
        ValueError: unless 0 < n <= m and eligible has delta's shape.
    Source: CABS, arXiv 2503.01874, section 4 (balanced sparsification).

    """
    check_nm(n, m)
    check_choice("tail", tail, ("keep", "drop"))
    free = None if eligible is None else _flat_bools(eligible, delta)
    mask = _nm_mask(_flat(delta), n, m, free, tail)
    return torch.from_numpy(mask).reshape(delta.shape).to(delta.device)


def conflict_aware(
    deltas: Sequence[Tensor],
    n: int,
    m: int,
    *,
    overlap: Literal["fill", "drop"] = "fill",
    tail: Literal["keep", "drop"] = "keep",
) -> list[Tensor]:
    """n:m masks of several task vectors, pruned one after another so that they do not overlap.

    Args:
        deltas: τ of one tensor for each vector, in pruning order, all of one shape; not modified.
        n, m: weights kept per block, weights per block.
        overlap: what a block with u < n free positions does: ``fill`` takes the n - u largest taken ones as well
            (appendix A.3), ``drop`` keeps just the u.
        tail: as in ``nm_mask``.

    Returns:
        Bool masks in the given order; disjoint in every block that has n free positions for each vector.

    Raises:
        ValueError: unless 0 < n <= m and the shapes are equal.
    Source: CABS, arXiv 2503.01874, section 4 (conflict-aware sparsification).

    """
    check_nm(n, m)
    check_choice("tail", tail, ("keep", "drop"))
    check_choice("overlap", overlap, ("fill", "drop"))
    if len({tuple(d.shape) for d in deltas}) > 1:
        raise ValueError(f"task vectors must have one shape, but got {[tuple(d.shape) for d in deltas]}")
    masks: list[Bools] = []
    taken: Bools | None = None
    for delta in deltas:
        masks.append(_next_mask(_flat(delta), n, m, taken, overlap, tail))
        taken = masks[-1] if taken is None else taken | masks[-1]
    return [torch.from_numpy(mask).reshape(d.shape).to(d.device) for mask, d in zip(masks, deltas, strict=True)]


def _next_mask(weights: Floats, n: int, m: int, taken: Bools | None, overlap: str, tail: str) -> Bools:
    """The mask of a vector that is pruned after those whose positions are taken."""
    mask = _nm_mask(weights, n, m, None if taken is None else ~taken, tail)
    if taken is not None and overlap == "fill" and np.count_nonzero(mask) < _wanted(weights.size, n, m, tail):
        mask |= _fill(weights, n, m, taken, tail)
    return mask


def _wanted(size: int, n: int, m: int, tail: str) -> int:
    """How many of ``size`` weights n:m keeps where none is 0."""
    return sum(count * -(-(rows.stop - rows.start) // m) for rows, count in _blocks(size, n, m, tail))


def _nm_mask(weights: Floats, n: int, m: int, free: Bools | None, tail: str) -> Bools:
    mask = np.zeros(weights.size, dtype=np.bool_)
    for rows, count in _blocks(weights.size, n, m, tail):
        shape = (-1, min(m, rows.stop - rows.start))
        largest(
            weights[rows].reshape(shape),
            count,
            None if free is None else free[rows].reshape(shape),
            out=mask[rows].reshape(shape),
        )
    return mask


def _fill(weights: Floats, n: int, m: int, taken: Bools, tail: str) -> Bools:
    """In blocks with u < n free positions, the n - u largest of the taken ones."""
    mask = np.zeros(weights.size, dtype=np.bool_)
    for rows, count in _blocks(weights.size, n, m, tail):
        width = min(m, rows.stop - rows.start)
        blocks, used = weights[rows].reshape(-1, width), taken[rows].reshape(-1, width)
        missing = count - (width - used.sum(axis=1))
        out = mask[rows].reshape(-1, width)
        for k in np.unique(missing[missing > 0]):
            short = missing == k
            out[short] = largest(blocks[short], int(k), used[short])
    return mask


def _blocks(size: int, n: int, m: int, tail: str) -> Iterator[tuple[slice, int]]:
    """The whole blocks, then the tail; with how many weights each block keeps."""
    whole = size - size % m
    if whole:
        yield slice(0, whole), n
    if whole < size and tail == "keep":
        yield slice(whole, size), (2 * n * (size - whole) + m) // (2 * m)


def largest(weights: Floats, k: int, free: Bools | None = None, out: Bools | None = None) -> Bools:
    """The k largest magnitudes of every row: ties keep the lower index, zeros are never kept.

    Args:
        weights: [rows, width].
        k: how many of each row.
        free: those that may be kept, [rows, width]; None: all.
        out: where to write the mask, [rows, width].

    """
    mask = np.zeros(weights.shape, dtype=np.bool_) if out is None else out
    if k == 0:
        mask[:] = False
        return mask

    def some(rows: slice) -> None:
        sizes, room = _scratch(weights[rows].shape)
        np.bitwise_and(weights[rows].view(np.uint32), np.uint32(0x7FFFFFFF), out=sizes)
        if free is not None:
            sizes *= free[rows]
        _largest(sizes, k, mask[rows], room)

    each(some, chunks(len(weights), max(1, CHUNK // weights.shape[1])))
    return mask


_own = threading.local()


def _scratch(shape: tuple[int, ...]) -> tuple[Sizes, Sizes]:
    """Two arrays of the thread's own: new ones each time would cost as much as what is done in them."""
    size = math.prod(shape)
    if size > CHUNK:  # one long row
        return np.empty(shape, np.uint32), np.empty(shape, np.uint32)
    if not hasattr(_own, "arrays"):
        _own.arrays = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint32)
    first, second = _own.arrays
    return first[:size].reshape(shape), second[:size].reshape(shape)


def _largest(sizes: Sizes, k: int, mask: Bools, room: Sizes) -> None:
    """``largest`` of rows that fit in cache; ``room`` is overwritten."""
    width = sizes.shape[1]
    if k >= width:
        np.greater(sizes, 0, out=mask)
        return
    np.copyto(room, sizes)
    room.partition(width - k, axis=1)
    bound = room[:, width - k].copy()
    some = np.maximum(bound, 1)  # a weight that is 0 is never kept
    np.greater_equal(sizes, some[:, None], out=mask)
    if np.count_nonzero(mask) == k * len(mask) and bound.all():
        return
    surplus = mask.sum(axis=1) > k
    if surplus.any():
        rows, bound = sizes[surplus], some[surplus, None]
        above, ties = rows > bound, rows == bound
        room = k - above.sum(axis=1, keepdims=True)
        mask[surplus] = above | (ties & (ties.cumsum(axis=1) <= room))


def parse_nm(text: str | Sequence[int]) -> NM:
    """``"64:256"`` as (64, 256). Raises ValueError unless 0 < n <= m."""
    try:
        n, m = (int(part) for part in (text.split(":") if isinstance(text, str) else text))
    except ValueError:
        raise ValueError(f"n:m must be two whole numbers such as 64:256, but got {text}") from None
    check_nm(n, m)
    return n, m


def check_nm(n: int, m: int) -> None:
    """Raises ValueError unless 0 < n <= m."""
    if not n > 0:
        raise ValueError(f"0 < n must hold, but got {n}:{m}")
    if n > m:
        raise ValueError(f"n <= m must hold, but got {n}:{m}")


def check_density(density: float) -> None:
    """Raises ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(f"0 < density <= 1 must hold, but got {density:g}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, but got {value!r}")


def _flat(delta: Tensor) -> Floats:
    found: Floats = delta.detach().reshape(-1).to("cpu", torch.float32).numpy()
    return found


def _sizes(weights: Floats) -> Sizes:
    found: Sizes = weights.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return found


def _flat_bools(eligible: Tensor, delta: Tensor) -> Bools:
    if eligible.shape != delta.shape:
        raise ValueError(f"eligible must have delta's shape, but got {eligible.shape} against {delta.shape}")
    found: Bools = eligible.reshape(-1).to("cpu", torch.bool).numpy()
    return found
