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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.calibration import Calibration, share, sparsegpt, wanda_scores

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
T = TypeVar("T")
NM = tuple[int, int]
PerExpert: TypeAlias = T | tuple[tuple[str, T], ...]
"""One value for all experts, or (expert, value) pairs."""
CHUNK = 1 << 18
"""Weights handled at a time, so that the work stays in cache."""


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
    """Float32, [kept]; every weight of the tensor, flat, where ``positions`` is None."""
    positions: Tensor | None
    """Int64, [kept], ascending, into the flattened tensor."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a whole vector's largest |τ| end."""

    bound: float
    """What is larger is kept."""
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
    delta: Callable[[str], Tensor],
    experts: Sequence[str],
    numel: int,
    *,
    known: Mapping[str, Kept | None] | None = None,
    survey: Survey | None = None,
) -> Iterator[tuple[str, Kept | None]]:
    """Prune one tensor of every task vector, in the order the rule prunes.

    Args:
        mask: the rule with its settings.
        tensor: the tensor's name.
        delta: gives τ of the tensor by expert, all of one shape; asked only for vectors that are not known.
        experts: the experts' names, in the family's order.
        numel: the tensor's number of weights.
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
        if "order" in settings(mask) and kept is not None and kept.positions is not None:
            taken = np.zeros(numel, dtype=np.bool_) if taken is None else taken
            taken[kept.positions.numpy()] = True
        yield expert, kept


def _prune(mask: Mask, tensor: str, expert: str, tau: Tensor, taken: Bools | None, survey: Survey) -> Kept | None:
    """What a rule keeps of one tensor of one vector."""
    if not tau.any():
        return None
    sizes, width, density = _magnitudes(tau), tau.numel(), density_of(mask, expert)
    match mask:
        case Whole():
            return Kept(tau.reshape(-1), None)
        case Magnitude():
            chosen = _top(sizes, width, density)
        case RowMagnitude():
            chosen = _top(sizes, width if tau.dim() < 2 else width // tau.shape[0], density)
        case VectorMagnitude():
            chosen = _above(sizes, survey.cuts[expert], tensor)
        case Random(seed=seed):
            chosen = _drawn("random", seed, tensor, expert, sizes, density)
        case RandomRescaled(seed=seed):
            chosen, tau = _drawn("random", seed, tensor, expert, sizes, density), tau / density
        case Dare(seed=seed):
            chosen, tau = _drawn("dare", seed, tensor, expert, sizes, density), tau / density
        case Balanced(nm=nm, tail=tail):
            chosen = _nm_mask(sizes, *value_for(nm, expert), None, tail)
        case ConflictAware(overlap=overlap):
            count = share(density, width)
            chosen = _next_mask(sizes, count, width, taken, overlap, "keep") if count else np.zeros(width, np.bool_)
        case Cabs(nm=nm, overlap=overlap, tail=tail):
            chosen = _next_mask(sizes, *value_for(nm, expert), taken, overlap, tail)
        case Wanda() | SparseGpt():
            chosen, tau = _calibrated(
                mask, tau, sizes, density, calibration_of(survey.calibrations, mask, expert), tensor
            )
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

            def sizes(tensor: str, expert: str = expert) -> Floats:
                return _magnitudes(delta(tensor, expert))

            cuts[expert] = _cut(sizes, tensors, value_for(mask.density, expert))
    return Survey(cuts=cuts, calibrations=calibrations)


def _cut(sizes: Callable[[str], Floats], tensors: Mapping[str, int], density: float) -> Cut:
    """The bound above which share(density) of all weights lie, exactly, in a few passes and constant memory.

    Tensors that the expert never changed do not count, as no other rule keeps anything of them.

    Magnitudes are ordered as their bits are: one pass counts them by their upper 16 bits, one those of the bound's
    group by their lower 16.
    """

    def bits(tensor: str) -> npt.NDArray[np.uint32]:
        return sizes(tensor).view(np.uint32)

    upper, weights = np.zeros(1 << 16, np.int64), 0
    for found in map(bits, tensors):
        upper += np.bincount(found >> 16, minlength=1 << 16)
        weights += len(found) if found.any() else 0
    wanted = share(density, weights)
    group, above = _reached(upper, wanted)
    lower = np.zeros(1 << 16, np.int64)
    for found in map(bits, tensors):
        lower += np.bincount(found[found >> 16 == group] & 0xFFFF, minlength=1 << 16)
    last, more = _reached(lower, wanted - above)
    bound = float(np.array([group << 16 | last], np.uint32).view(np.float32)[0])
    room, ties = wanted - above - more, {}
    for tensor in tensors if bound > 0 else ():
        if room == 0:
            break
        ties[tensor] = min(room, int(np.count_nonzero(sizes(tensor) == np.float32(bound))))
        room -= ties[tensor]
    return Cut(bound=bound, ties=ties)


def _reached(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The group in which the ``wanted`` largest end, and how many lie above that group."""
    from_top = counts[::-1].cumsum()
    place = min(int(np.searchsorted(from_top, wanted)), len(counts) - 1)
    return len(counts) - 1 - place, int(from_top[place] - counts[::-1][place])


def _above(sizes: Floats, cut: Cut, tensor: str) -> Bools:
    mask: Bools = sizes > np.float32(cut.bound)
    if room := cut.ties.get(tensor, 0):
        mask[np.flatnonzero(sizes == np.float32(cut.bound))[:room]] = True
    return mask


def _top(sizes: Floats, width: int, density: float) -> Bools:
    """The largest of every ``width`` weights."""
    return largest(sizes.reshape(-1, width), share(density, width)).reshape(-1)


def _drawn(stream: str, seed: int, tensor: str, expert: str, sizes: Floats, density: float) -> Bools:
    """Bernoulli draws that depend on what is named here and on no order; a weight that is exactly 0 is never kept."""
    digest = hashlib.blake2b(f"{stream} {seed} {tensor} {expert}".encode(), digest_size=16).digest()
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw((len(sizes) + 1) // 2)
    found: Bools = raw.view(np.uint32)[: len(sizes)] < np.float64(density) * 2.0**32
    return found & (sizes > 0)


def calibration_of(calibrations: Mapping[str, Calibration], mask: Mask, expert: str) -> Calibration:
    """One expert's statistics. Raises ValueError where there are none."""
    if expert not in calibrations:
        raise ValueError(
            f"{mask.name}: every expert must have a task to take calibration items from, as it has in a study, but "
            f"{expert} has none"
        )
    return calibrations[expert]


def _calibrated(
    mask: Wanda | SparseGpt, tau: Tensor, sizes: Floats, density: float, calibration: Calibration, tensor: str
) -> tuple[Bools, Tensor]:
    """Mask and values by a rule that knows the layer's inputs; plain magnitude where the tensor has none."""
    gram = calibration.gram(tensor)
    if gram is None:
        return _top(sizes, len(sizes), density), tau
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


def kept_by(delta: Tensor, mask: Tensor) -> Kept | None:
    """The weights of ``delta`` that ``mask`` keeps; None where it keeps none."""
    positions = mask.reshape(-1).nonzero().reshape(-1)
    return Kept(delta.reshape(-1)[positions], positions) if len(positions) else None


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
    mask = _nm_mask(_magnitudes(delta), n, m, free, tail)
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
        masks.append(_next_mask(_magnitudes(delta), n, m, taken, overlap, tail))
        taken = masks[-1] if taken is None else taken | masks[-1]
    return [torch.from_numpy(mask).reshape(d.shape).to(d.device) for mask, d in zip(masks, deltas, strict=True)]


def _next_mask(magnitudes: Floats, n: int, m: int, taken: Bools | None, overlap: str, tail: str) -> Bools:
    """The mask of a vector that is pruned after those whose positions are taken."""
    if not magnitudes.any():
        return np.zeros(magnitudes.size, dtype=np.bool_)
    if taken is None:
        return _nm_mask(magnitudes, n, m, None, tail)
    mask = _nm_mask(magnitudes, n, m, ~taken, tail)
    if overlap == "fill":
        mask |= _fill(magnitudes, n, m, taken, tail)
    return mask


def _nm_mask(magnitudes: Floats, n: int, m: int, free: Bools | None, tail: str) -> Bools:
    if free is not None:
        magnitudes = np.where(free, magnitudes, np.float32(0))
    mask = np.zeros(magnitudes.size, dtype=np.bool_)
    for rows, count in _blocks(magnitudes.size, n, m, tail):
        mask[rows] = largest(magnitudes[rows].reshape(-1, min(m, rows.stop - rows.start)), count).reshape(-1)
    return mask


def _fill(magnitudes: Floats, n: int, m: int, taken: Bools, tail: str) -> Bools:
    """In blocks with u < n free positions, the n - u largest of the taken ones."""
    mask = np.zeros(magnitudes.size, dtype=np.bool_)
    for rows, count in _blocks(magnitudes.size, n, m, tail):
        width = min(m, rows.stop - rows.start)
        blocks, used = magnitudes[rows].reshape(-1, width), taken[rows].reshape(-1, width)
        missing = count - (width - used.sum(axis=1))
        out = mask[rows].reshape(-1, width)
        for k in np.unique(missing[missing > 0]):
            short = missing == k
            out[short] = largest(np.where(used[short], blocks[short], np.float32(0)), int(k))
    return mask


def _blocks(size: int, n: int, m: int, tail: str) -> Iterator[tuple[slice, int]]:
    """Runs of whole blocks of some CHUNK weights, then the tail; with how many weights each block keeps."""
    whole = size - size % m
    step = max(1, CHUNK // m) * m
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole)), n
    if whole < size and tail == "keep":
        yield slice(whole, size), (2 * n * (size - whole) + m) // (2 * m)


def largest(magnitudes: Floats, k: int) -> Bools:
    """The k largest of every row, [rows, width]: ties keep the lower index, zeros are never kept."""
    width = magnitudes.shape[1]
    if k == 0:
        return np.zeros(magnitudes.shape, dtype=np.bool_)
    if k >= width:
        return magnitudes > 0
    threshold = np.partition(magnitudes, width - k, axis=1)[:, width - k, None]
    mask = magnitudes >= threshold
    mask &= magnitudes > 0
    surplus = mask.sum(axis=1) > k
    if surplus.any():
        rows, bound = magnitudes[surplus], threshold[surplus]
        above, ties = rows > bound, rows == bound
        room = k - above.sum(axis=1, keepdims=True)
        mask[surplus] = above | (ties & (ties.cumsum(axis=1) <= room))
    return mask


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


def _magnitudes(delta: Tensor) -> Floats:
    found: Floats = delta.detach().reshape(-1).to("cpu", torch.float32).abs().numpy()
    return found


def _flat_bools(eligible: Tensor, delta: Tensor) -> Bools:
    if eligible.shape != delta.shape:
        raise ValueError(f"eligible must have delta's shape, but got {eligible.shape} against {delta.shape}")
    found: Bools = eligible.reshape(-1).to("cpu", torch.bool).numpy()
    return found
