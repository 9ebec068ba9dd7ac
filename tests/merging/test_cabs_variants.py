"""The rules beside CABS (rounds, growing n, relative magnitude) against naive loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.prune import prune
from cabs_search.merging.masks.rules import identity
from cabs_search.merging.method import METHOD_NAMES, Method, make_method
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.merging.task_vector import Delta
from cabs_search.spec.recipe_file import parse_recipe
from tests.conftest import EXPERTS
from tests.merging.test_masks import VALUES, naive_kept

NAMES = ("a", "b", "c")
Arrays = Mapping[str, np.ndarray]
OVERLAP, TAIL = st.sampled_from(["fill", "drop"]), st.sampled_from(["keep", "drop"])
NM = st.integers(1, 12).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))


# without the tiny one, sums of squares are exact, so that vectors tie in both or in neither
EXACT = st.sampled_from([0.0, -0.0, 0.25, -0.5, 1.0, -1.0, 2.0, 3.0, -65504.0])


@st.composite
def families(draw: st.DrawFn, values: st.SearchStrategy[float] = VALUES) -> dict[str, np.ndarray]:
    """Small vectors with ties and zeros."""
    size, count = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    return {
        name: draw(hnp.arrays(np.float32, size, elements=values.map(np.float32)))
        for name in NAMES[:count]
    }


def masks_of(method: Method, vectors: Arrays) -> dict[str, np.ndarray]:
    """Masks by expert; the kept values must be the vector's own."""
    deltas = {e: {"w": Delta(torch.from_numpy(tau))} for e, tau in vectors.items()}
    found = {}
    for expert, kept in prune(method.mask, "w", deltas, dict.fromkeys(vectors), {}, {}):
        mask = np.zeros(len(vectors[expert]), bool)
        if kept is not None and kept.mask is not None:
            mask = kept.mask.numpy()
            assert kept.values.numpy().tolist() == vectors[expert][mask].tolist()
        found[expert] = mask
    return found


def shares(count: int, rounds: int) -> list[int]:
    """How many of ``count`` each round takes."""
    ends = [math.floor(Fraction(count * place, rounds)) for place in range(rounds + 1)]
    return [after - before for before, after in pairwise(ends)]


def naive_rounds(
    vectors: Arrays, order: Sequence[str], n: int, m: int, rounds: int, overlap: str, tail: str
) -> dict[str, np.ndarray]:
    held: dict[str, set[int]] = {expert: set() for expert in order}
    size = len(vectors[order[0]])
    for turn in range(rounds):
        for expert in order:
            others = set().union(*(held[e] for e in order if e != expert))
            tau, own = np.abs(vectors[expert]), held[expert]
            new: set[int] = set()
            for start in range(0, size, m):
                block = range(start, min(start + m, size))
                count = shares(naive_kept(len(block), n, m, tail), rounds)[turn]
                by_size = sorted((i for i in block if tau[i] > 0), key=lambda i: (-tau[i], i))
                free = [i for i in block if i not in others and i not in own]
                new.update([i for i in by_size if i in free][:count])
                if overlap == "fill" and len(free) < count:
                    again = [i for i in by_size if i in others and i not in own]
                    new.update(again[: count - len(free)])
            held[expert] = own | new
    return {e: np.isin(np.arange(size), sorted(own)) for e, own in held.items()}


@settings(max_examples=300, deadline=None)
@given(families(), NM, st.integers(1, 5), OVERLAP, TAIL)
def test_rounds_are_the_naive_ones(
    vectors: Arrays, nm: tuple[int, int], rounds: int, overlap: str, tail: str
) -> None:
    order = tuple(vectors)[::-1]
    method = make_method(
        "cabs-rounds", tuple(vectors), nm=nm, order=order, rounds=rounds, overlap=overlap, tail=tail
    )
    found = masks_of(method, vectors)
    assert tuple(found) == order
    naive = naive_rounds(vectors, order, *nm, rounds, overlap, tail)
    assert {e: mask.tolist() for e, mask in found.items()} == {
        e: mask.tolist() for e, mask in naive.items()
    }


@settings(max_examples=150, deadline=None)
@given(families(), NM, OVERLAP, TAIL)
def test_one_round_is_cabs_and_one_relative_vector_is_bs(
    vectors: Arrays, nm: tuple[int, int], overlap: str, tail: str
) -> None:
    given_: dict[str, Any] = {"nm": nm, "overlap": overlap, "tail": tail}
    experts = tuple(vectors)
    one = masks_of(make_method("cabs-rounds", experts, rounds=1, **given_), vectors)
    plain = masks_of(make_method("cabs", experts, **given_), vectors)
    even = masks_of(make_method("cabs-growing", experts, growth=1, **given_), vectors)
    assert [m.tolist() for m in one.values()] == [m.tolist() for m in plain.values()]
    assert [m.tolist() for m in even.values()] == [m.tolist() for m in plain.values()]
    alone = {"a": vectors["a"]}
    relative = masks_of(make_method("cabs-relative", ("a",), **given_), alone)
    balanced = masks_of(make_method("bs", ("a",), nm=nm, tail=tail), alone)
    assert relative["a"].tolist() == balanced["a"].tolist()


def naive_relative(
    vectors: Arrays, nms: Mapping[str, tuple[int, int]], overlap: str, tail: str
) -> dict[str, np.ndarray]:
    size = len(next(iter(vectors.values())))

    def room(expert: str, at: int) -> tuple[range, int]:
        n, m = nms[expert]
        start = at - at % m
        block = range(start, min(start + m, size))
        return block, naive_kept(len(block), n, m, tail)

    norms = {e: math.sqrt(sum(float(v) ** 2 for v in tau)) for e, tau in vectors.items()}
    pairs = [
        (-abs(float(tau[i])) / norms[e], place, i, e)
        for place, (e, tau) in enumerate(vectors.items())
        for i in range(size)
        if tau[i]
    ]
    held: dict[str, set[int]] = {expert: set() for expert in vectors}
    for _, _, i, expert in sorted(pairs):
        block, count = room(expert, i)
        is_free = all(i not in own for own in held.values())
        if is_free and len(held[expert] & set(block)) < count:
            held[expert].add(i)
    before = {expert: set(own) for expert, own in held.items()}
    for expert, tau in vectors.items():
        others = set().union(*(own for e, own in before.items() if e != expert))
        for start in range(0, size, nms[expert][1]):
            block, count = room(expert, start)
            free = [i for i in block if i not in others]
            if overlap == "fill" and len(free) < count:
                again = [i for i in block if i in others and tau[i]]
                again.sort(key=lambda i: (-abs(tau[i]), i))
                held[expert].update(again[: count - len(free)])
    return {e: np.isin(np.arange(size), sorted(own)) for e, own in held.items()}


@settings(max_examples=300, deadline=None)
@given(families(EXACT), st.lists(NM, min_size=3, max_size=3), OVERLAP, TAIL, st.booleans())
def test_relative_is_the_naive_one(
    vectors: Arrays, nms: list[tuple[int, int]], overlap: str, tail: str, own: bool
) -> None:
    by_expert = {e: nms[i if own else 0] for i, e in enumerate(vectors)}
    method = make_method(
        "cabs-relative",
        tuple(vectors),
        nm=tuple(by_expert.items()) if own else nms[0],
        overlap=overlap,
        tail=tail,
    )
    found = masks_of(method, vectors)
    naive = naive_relative(vectors, by_expert, overlap, tail)
    assert {e: mask.tolist() for e, mask in found.items()} == {
        e: mask.tolist() for e, mask in naive.items()
    }


def made_up(
    seed: int, size: int, scales: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed)
    return {
        name: (scale * draws.standard_normal(size)).astype(np.float32)
        for name, scale in zip(NAMES, scales, strict=True)
    }


@pytest.mark.parametrize(
    ("name", "setting"),
    [("cabs-rounds", {"rounds": 4}), ("cabs-relative", {}), ("cabs-rounds", {"rounds": 40})],
)
def test_masks_are_disjoint_and_keep_n_of_every_m(name: str, setting: dict[str, Any]) -> None:
    vectors = made_up(0, 32 * 50 + 7)
    masks = masks_of(make_method(name, NAMES, nm=(10, 32), **setting), vectors)
    assert np.sum(list(masks.values()), axis=0).max() <= 1
    for mask in masks.values():
        assert (mask[: 32 * 50].reshape(-1, 32).sum(axis=1) == 10).all()
        assert mask[32 * 50 :].sum() == 2  # floor(10·7/32 + 1/2)


def kept_shares(masks: Arrays, vectors: Arrays) -> list[float]:
    """Share of each vector's Σ|τ| that is kept, in the order a, b, c."""
    return [float(np.abs(vectors[e][masks[e]]).sum() / np.abs(vectors[e]).sum()) for e in NAMES]


def test_the_last_vector_gets_better_weights_by_rounds_and_by_relative_magnitude() -> None:
    vectors = made_up(1, 32 * 400, (1.0, 1.0, 0.01))

    def spread(name: str, **setting: Any) -> float:
        found = kept_shares(
            masks_of(make_method(name, NAMES, nm=(10, 32), **setting), vectors), vectors
        )
        return max(found) - min(found)

    plain = spread("cabs")
    assert spread("cabs-rounds", rounds=2) < plain
    assert spread("cabs-rounds", rounds=10) < spread("cabs-rounds", rounds=2)
    assert spread("cabs-relative") < plain / 10


def test_relative_magnitude_knows_no_scale_and_no_order() -> None:
    vectors = made_up(2, 300)
    scaled = {e: tau * np.float32(2.0**k) for k, (e, tau) in enumerate(vectors.items())}
    method = make_method("cabs-relative", NAMES, nm=(3, 16))
    plain, other = masks_of(method, vectors), masks_of(method, scaled)
    turned = masks_of(
        make_method("cabs-relative", NAMES[::-1], nm=(3, 16)), {e: vectors[e] for e in NAMES[::-1]}
    )
    for expert in NAMES:
        assert plain[expert].tolist() == other[expert].tolist() == turned[expert].tolist()


@pytest.mark.parametrize(
    ("nm", "count", "growth", "expected"),
    [
        ((64, 256), 3, 2.0, [43, 64, 85]),
        ((64, 256), 4, 3.0, [32, 53, 75, 96]),
        ((1, 32), 2, 3.0, [1, 2]),  # 0.5 and 1.5, and a vector keeps 1 at the least
        ((3, 32), 2, 3.0, [2, 4]),  # 1.5 and 4.5: halves to even numbers
        ((64, 256), 3, 0.5, [85, 64, 43]),
        ((30, 32), 2, 3.0, [15, 32]),  # not more than m
        ((64, 256), 1, 5.0, [64]),
        ((3, 32), 4, 3.0, [2, 2, 4, 4]),  # 1.5, 2.5, 3.5, 4.5
    ],
)
def test_growing_n_by_place(
    nm: tuple[int, int], count: int, growth: float, expected: list[int]
) -> None:
    vectors = {e: tau for e, tau in made_up(3, nm[1] * 3).items() if e in NAMES[:count]}
    if count == 4:
        vectors["d"] = made_up(4, nm[1] * 3)["a"]
    order = tuple(vectors)[::-1]
    method = make_method("cabs-growing", tuple(vectors), nm=nm, order=order, growth=growth)
    masks = masks_of(method, vectors)
    assert [int(masks[e].sum()) // 3 for e in order] == expected
    assert [identity(method.mask, e)["nm"] for e in order] == [(n, nm[1]) for n in expected]
    by_hand = make_method(
        "cabs",
        tuple(vectors),
        nm=tuple((e, (n, nm[1])) for e, n in zip(order, expected, strict=True)),
        order=order,
    )
    assert {e: m.tolist() for e, m in masks_of(by_hand, vectors).items()} == {
        e: m.tolist() for e, m in masks.items()
    }


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("cabs-rounds", {"rounds": 0}, "rounds must be a whole number from 1 to 1024, but got 0"),
        ("cabs-rounds", {"rounds": "x"}, "rounds must be a whole number"),
        ("cabs-rounds", {"rounds": 1.5}, "rounds must be a whole number"),
        ("cabs-growing", {"growth": -1}, "0 <= growth <= 100 must hold"),
        ("cabs-growing", {"growth": "x"}, "growth must be a number, but got x"),
        ("cabs-relative", {"nm": (1, 5000)}, "up to 4096, but got 5000"),
        (
            "cabs-relative",
            {"nm": tuple((e, (1, 256 - (e == "a"))) for e in NAMES)},
            "4096, but got 65280",
        ),
    ],
)
def test_wrong_settings_are_one_line(name: str, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(name, NAMES, **setting)


def test_each_is_a_row_of_a_comparison_and_a_recipe_that_is_read_as_written() -> None:
    rows = ("cabs-rounds", "cabs-growing", "cabs-relative")
    assert set(rows) < set(METHOD_NAMES)
    settings_of: dict[str, Any] = {
        "cabs-rounds": {"rounds": 4},
        "cabs-growing": {"growth": 1.5},
        "cabs-relative": {},
    }
    shown = ("cabs-rounds 3:32 b>a 4", "cabs-growing 3:32 b>a 1.5", "cabs-relative 3:32")
    for name, text in zip(rows, shown, strict=True):
        order: dict[str, Any] = {} if name == "cabs-relative" else {"order": ("b", "a")}
        method = make_method(name, ("a", "b"), nm=(3, 32), **settings_of[name], **order)
        recipe = make_recipe(method, {"a": 1.0, "b": 0.5})
        assert str(method) == text
        assert Recipe.from_dict(recipe.as_dict()) == recipe
        assert parse_recipe(recipe.as_dict(), "file", Path()).recipe == recipe


def test_old_keys_stay_and_new_ones_have_the_new_settings(pico: Path, tmp_path: Path) -> None:
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    names = tuple(family.experts)
    cache = VectorCache(tmp_path)

    def paths(name: str, **setting: Any) -> list[Path]:
        return list(cache.paths(family, make_method(name, names, nm=(3, 32), **setting)).values())

    seen: set[Path] = set()
    for found in (
        paths("cabs"),
        paths("cabs-rounds", rounds=2),
        paths("cabs-rounds", rounds=3),
        paths("cabs-rounds", order=names[::-1]),
        paths("cabs-relative"),
        paths("cabs-relative", overlap="drop"),
    ):
        assert not seen & set(found)
        seen |= set(found)
    # what one keeps depends on the n:m of the others
    uneven = tuple((e, (3 + i, 32)) for i, e in enumerate(names))
    for name in ("cabs-rounds", "cabs-relative"):
        assert not seen & set(cache.paths(family, make_method(name, names, nm=uneven)).values())
    # growing is CABS with other n: the same entries
    growing = make_method("cabs-growing", names, nm=(9, 32))
    same = tuple(zip(names, ((6, 32), (9, 32), (12, 32)), strict=True))
    assert cache.paths(family, growing) == cache.paths(family, make_method("cabs", names, nm=same))


@pytest.mark.parametrize("name", ["cabs-rounds", "cabs-growing", "cabs-relative"])
def test_a_cached_vector_is_the_pruned_one_also_if_one_entry_is_lost(
    pico: Path, tmp_path: Path, name: str
) -> None:
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    method = make_method(name, tuple(family.experts), nm=(3, 32))
    cache = VectorCache(tmp_path)
    paths = cache.ensure(family, method)
    before = {expert: path.read_bytes() for expert, path in paths.items()}
    lost = next(iter(paths))
    paths[lost].unlink()
    assert cache.ensure(family, method) == paths
    assert {expert: path.read_bytes() for expert, path in paths.items()} == before
    vectors = cache.open(paths)
    for tensor in family.alignment.shared:
        numel = family.numel(tensor)
        for expert, kept in family.prune(method.mask, tensor, family.survey(method.mask)):
            stored = vectors[expert].kept(tensor, numel)
            assert (kept is None) == (stored is None)
            if kept is not None and stored is not None:
                assert torch.equal(kept.values, stored.values)
                assert torch.equal(kept.dense(), stored.dense())


def test_chunks_and_threads_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = made_up(5, 1000)
    methods = [
        make_method("cabs-rounds", NAMES, nm=(3, 16), rounds=2),
        make_method("cabs-relative", NAMES, nm=(("a", (3, 16)), ("b", (2, 8)), ("c", (3, 12)))),
    ]
    whole = [masks_of(method, vectors) for method in methods]
    monkeypatch.setattr("cabs_search.merging.masks.joint.CHUNK", 64)
    for method, expected in zip(methods, whole, strict=True):
        found = masks_of(method, vectors)
        assert {e: m.tolist() for e, m in found.items()} == {
            e: m.tolist() for e, m in expected.items()
        }
