"""Masks against a naive reference, on made-up tensors of every awkward kind."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cabs_search.merging.masks.n_m import conflict_aware, nm_mask

# Few distinct magnitudes make ties; zeros and whole zero tensors come by themselves.
VALUES = st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 2.0, 3.0, 1e-30, -65504.0])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
NM = st.integers(1, 12).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=9)


@st.composite
def families(draw: st.DrawFn) -> list[torch.Tensor]:
    shape, dtype = draw(SHAPES), draw(DTYPES)
    count = draw(st.integers(1, 6))
    return [
        torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=VALUES)))
        .to(dtype)
        .reshape(shape)
        for _ in range(count)
    ]


def naive_kept(width: int, n: int, m: int, tail: str) -> int:
    """How many weights a block keeps."""
    if width == m:
        return n
    return 0 if tail == "drop" else int(np.floor(n * width / m + 0.5))


def naive_masks(
    deltas: Sequence[torch.Tensor], n: int, m: int, overlap: str, tail: str
) -> list[np.ndarray]:
    """METHOD rules 2 to 4, one weight at a time."""
    flat = [d.reshape(-1).to(torch.float64).abs().tolist() for d in deltas]
    taken: set[int] = set()
    masks = []
    for magnitudes in flat:
        kept: set[int] = set()
        for start in range(0, len(magnitudes), m):
            block = range(start, min(start + m, len(magnitudes)))
            count = naive_kept(len(block), n, m, tail)
            by_size = sorted(
                (i for i in block if magnitudes[i] > 0), key=lambda i: (-magnitudes[i], i)
            )
            free = [i for i in block if i not in taken]
            kept.update([i for i in by_size if i not in taken][:count])
            if overlap == "fill" and len(free) < count:
                kept.update([i for i in by_size if i in taken][: count - len(free)])
        taken |= kept
        mask = np.zeros(len(magnitudes), dtype=bool)
        mask[list(kept)] = True
        masks.append(mask)
    return masks


@settings(max_examples=400, deadline=None)
@given(families(), NM, st.sampled_from(["fill", "drop"]), st.sampled_from(["keep", "drop"]))
@example([torch.zeros(5), torch.zeros(5)], (2, 4), "fill", "keep")
@example([torch.ones(8)] * 3, (3, 4), "fill", "keep")
def test_conflict_aware_equals_the_naive_reference(
    deltas: list[torch.Tensor], nm: tuple[int, int], overlap: str, tail: str
) -> None:
    before = [d.clone() for d in deltas]
    found = conflict_aware(deltas, *nm, overlap=overlap, tail=tail)
    for mask, naive, delta in zip(
        found, naive_masks(deltas, *nm, overlap, tail), deltas, strict=True
    ):
        assert mask.dtype == torch.bool
        assert mask.shape == delta.shape
        assert mask.reshape(-1).tolist() == naive.tolist()
    assert all(torch.equal(a, b) for a, b in zip(before, deltas, strict=True))


@settings(max_examples=200, deadline=None)
@given(families(), NM, st.data())
def test_nm_mask_equals_the_naive_reference_where_eligible(
    deltas: list[torch.Tensor], nm: tuple[int, int], data: st.DataObject
) -> None:
    delta = deltas[0]
    eligible = torch.from_numpy(data.draw(hnp.arrays(np.bool_, delta.numel()))).reshape(delta.shape)
    where_free = torch.where(eligible, delta, torch.zeros_like(delta))
    assert (
        nm_mask(delta, *nm, eligible).reshape(-1).tolist()
        == naive_masks([where_free], *nm, "drop", "keep")[0].tolist()
    )
    assert torch.equal(nm_mask(delta, *nm), nm_mask(delta, *nm, torch.ones_like(eligible)))


@settings(max_examples=200, deadline=None)
@given(families(), NM, st.sampled_from(["fill", "drop"]))
def test_masks_are_disjoint_wherever_they_can_be(
    deltas: list[torch.Tensor], nm: tuple[int, int], overlap: str
) -> None:
    n, m = nm
    masks = [mask.reshape(-1).numpy() for mask in conflict_aware(deltas, n, m, overlap=overlap)]
    uses = np.sum(masks, axis=0)
    if overlap == "drop":
        assert uses.max() <= 1
    whole = uses[: uses.size - uses.size % m]
    if len(deltas) * n <= m and whole.size:
        assert whole.max() <= 1


@settings(max_examples=100, deadline=None)
@given(families(), NM)
def test_a_zero_is_never_kept_and_no_block_keeps_more_than_its_share(
    deltas: list[torch.Tensor], nm: tuple[int, int]
) -> None:
    for mask, delta in zip(conflict_aware(deltas, *nm), deltas, strict=True):
        assert not (mask & (delta == 0)).any()
        n, m = nm
        for block in mask.reshape(-1).split(m):
            assert block.sum() <= naive_kept(len(block), n, m, "keep")


def test_blocks_larger_than_a_chunk_and_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensor is handled in chunks: where they end makes no difference."""
    torch.manual_seed(0)
    delta = torch.randn(3, 1001)
    expected = nm_mask(delta, 5, 32)
    monkeypatch.setattr("cabs_search.merging.masks.selection.CHUNK", 64)
    assert torch.equal(nm_mask(delta, 5, 32), expected)
    assert torch.equal(
        nm_mask(delta, 50, 320),
        torch.from_numpy(naive_masks([delta], 50, 320, "fill", "keep")[0]).reshape(3, 1001),
    )


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 4)])
def test_n_and_m_must_be_in_order(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"must hold, but got {n}:{m}"):
        nm_mask(torch.ones(8), n, m)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must have delta's shape"):
        nm_mask(torch.ones(8), 1, 4, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="must have one shape"):
        conflict_aware([torch.ones(8), torch.ones(4)], 1, 4)
