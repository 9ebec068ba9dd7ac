"""The store gives back what went in; a resident model's n-th candidate has the bits of a fresh
merge.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import cabs_search
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.calibration import write_calibration
from cabs_search.merging.combine.sums import Placed, TensorSum, kernels, write_sums
from cabs_search.merging.family import Family
from cabs_search.merging.masks.n_m import conflict_aware
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.method import METHOD_NAMES, Method, combine_rule_of, make_method
from cabs_search.merging.packed import Packed
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.merging.resident import Resident
from cabs_search.merging.sparse import Kept
from cabs_search.scoring.workbench import Workbench
from cabs_search.spec.load import parse
from tests.conftest import EXPERTS, pico_values

ORDERS = list(itertools.permutations(EXPERTS))
LAMBDAS = st.floats(-2, 4).map(lambda x: round(x, 2))
GROUPS = (("first", r"layer\.0\."), ("rest", "."))


def per_expert(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One value for all, or one each."""
    each = st.tuples(values, values, values).map(
        lambda three: tuple(zip(EXPERTS, three, strict=True))
    )
    return st.one_of(values, each)


ANY_NUMBER = [name for name in METHOD_NAMES if combine_rule_of(name).experts is None]
METHODS = st.builds(
    make_method,
    st.sampled_from([*ANY_NUMBER, "ties-random", "ties-sum-cabs", "ties-task-arithmetic"]),
    st.just(EXPERTS),
    nm=per_expert(st.sampled_from([(1, 4), (2, 8), (3, 8), (8, 32), (16, 16), (1, 300)])),
    density=per_expert(st.sampled_from([0.001, 0.1, 0.25, 0.6, 1.0])),
    order=st.sampled_from(ORDERS),
    overlap=st.sampled_from(["fill", "drop"]),
    overlap_merge=st.sampled_from(["sum", "ties"]),
    tail=st.sampled_from(["keep", "drop"]),
    seed=st.integers(0, 3),
    gamma=st.sampled_from([0.0, 0.01, 0.3]),
    epsilon=st.sampled_from([0.0, 0.15]),
    alpha=st.sampled_from([0.5, 0.9]),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    method = draw(METHODS)
    groups, layers = draw(st.sampled_from([((), 0), (GROUPS, 0), ((), 2)]))
    parts = ["1", "2"] if layers else [name for name, _ in groups]
    keys = [f"{e}.{part}" for e in EXPERTS for part in parts] or EXPERTS
    return make_recipe(method, {key: draw(LAMBDAS) for key in keys}, groups, layers)


@pytest.fixture(scope="module")
def family(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The pico family, with what its layers saw on random calibration items."""
    opened = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    torch.manual_seed(0)
    inputs = {
        t: torch.randn(200, shape[1])
        for t, shape in opened.alignment.shapes.items()
        if len(shape) == 2
    }
    grams = {t: x.T @ x for t, x in inputs.items() if "embeddings" not in t}
    fishers = {t: torch.rand(shape) for t, shape in opened.alignment.shapes.items()}
    folder = tmp_path_factory.mktemp("calibration")
    return replace(
        opened,
        calibrations={
            (kind, e): write_calibration(
                folder / f"{kind}-{e}.safetensors", {t: size * g for t, g in found.items()}
            )
            for kind, found in (("layers", grams), ("fisher", fishers))
            for size, e in enumerate(EXPERTS, 1)
        },
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VectorCache:
    return VectorCache(tmp_path_factory.mktemp("store"))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    candidates=st.lists(recipes(), min_size=1, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_nth_candidate_has_the_bits_of_a_fresh_merge(
    family: Family, store: VectorCache, candidates: list[Recipe], dtype: torch.dtype
) -> None:
    shapes = family.alignment.shapes
    tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    resident = Resident(family.base, tensors, vector_bytes=200_000)  # some are dropped on the way
    for recipe in candidates:
        vectors = store.open(store.ensure(family, recipe.method))
        resident.materialize(vectors, recipe)
    for name, fresh in merged_tensors(family, candidates[-1], dtype):
        assert torch.equal(bits(tensors[name]), bits(fresh)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_nth_mean_of_two_has_the_bits_of_a_fresh_merge(
    pico: Path, store: VectorCache, dtype: torch.dtype
) -> None:
    """Methods of two experts, after one another and with groups of tensors."""
    names = EXPERTS[:2]
    two = Family.open(pico / "base", {name: pico / name for name in names})
    tensors = {n: torch.empty(s, dtype=dtype) for n, s in two.alignment.shapes.items()}
    resident = Resident(two.base, tensors)
    for name in ("slerp", "nuslerp", "slerp-cabs", "slerp"):
        method = make_method(name, names, nm=(2, 8))
        vectors = store.open(store.ensure(two, method))
        for values in ((0.3, 1.1), (0.0, 1.0), (2.0, -0.7)):
            by_group = {
                f"{e}.{g}": v for e, v in zip(names, values, strict=True) for g, _ in GROUPS
            }
            recipe = make_recipe(method, by_group | {f"{names[0]}.rest": 0.6}, GROUPS)
            resident.materialize(vectors, recipe)
            for tensor, fresh in merged_tensors(two, recipe, dtype):
                assert torch.equal(bits(tensors[tensor]), bits(fresh)), (name, tensor)


def test_experts_with_equal_weights_keep_their_own_lambda(pico: Path, tmp_path: Path) -> None:
    """Their entries are the same files, whichever comes first."""
    twins = Family.open(pico / "base", {"one": pico / "mood", "two": pico / "mood"})
    tensors = {name: torch.empty(shape) for name, shape in twins.alignment.shapes.items()}
    resident, lambdas = Resident(twins.base, tensors), {"one": 0.5, "two": 2.0}
    for order in (("one", "two"), ("two", "one")):
        recipe = make_recipe(make_method("cabs", ("one", "two"), nm=(2, 8), order=order), lambdas)
        resident.materialize(
            (opened := VectorCache(tmp_path)).open(opened.ensure(twins, recipe.method)), recipe
        )
        for name, fresh in merged_tensors(twins, recipe):
            assert torch.equal(bits(tensors[name]), bits(fresh)), name


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(method=METHODS)
def test_entries_give_back_what_was_kept(
    family: Family, store: VectorCache, method: Method
) -> None:
    vectors = store.open(store.ensure(family, method))
    survey = family.survey(method.mask)
    for tensor in family.alignment.shared:
        numel = family.numel(tensor)
        pruned = dict(family.prune(method.mask, tensor, survey))
        left = method.combine.combine(list(pruned.values()), family.alignment.shapes[tensor])
        for expert, kept in zip(pruned, left, strict=True):
            assert same(vectors[expert].kept(tensor, numel), kept)


def same(a: Kept | None, b: Kept | None) -> bool:
    if a is None or b is None:
        return a is b
    if (a.mask is None) != (b.mask is None):
        return False
    where = a.mask is None or b.mask is None or torch.equal(a.mask, b.mask)
    return where and torch.equal(a.values, b.values)


@given(candidate=recipes())
@settings(max_examples=100, deadline=None)
def test_a_recipe_survives_json(candidate: Recipe) -> None:
    again = Recipe.from_dict(json.loads(json.dumps(candidate.as_dict())))
    assert again == candidate
    assert again.key == candidate.key


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.floats(0, 1), st.integers(0, 2**16))
def test_any_mask_survives_either_encoding(numel: int, density: float, seed: int) -> None:
    """One bit a weight where much is kept, one byte a kept weight where little is."""
    from cabs_search.merging.cache import StoredVector, _EntryWriter

    torch.manual_seed(seed)
    positions = (torch.rand(numel) < density).nonzero().reshape(-1)
    kept = Kept.at(positions, torch.rand(len(positions)), numel)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m").mkdir()
        save_file({"w": torch.zeros(numel)}, Path(folder) / "m" / "model.safetensors")
        family = Family.open(Path(folder) / "m", {"e": Path(folder) / "m"})
        with _EntryWriter(Path(folder) / "x.safetensors", family, "e") as writer:
            writer.add_kept("w", kept)
        assert same(StoredVector(Path(folder) / "x.safetensors").kept("w", numel), kept)


def test_task_arithmetic_is_base_plus_lambda_tau(pico: Path) -> None:
    lambdas = {"mood": 0.3, "animal": -0.7, "pair": 1.9}
    found = cabs_search.merge(
        pico / "base", {n: pico / n for n in EXPERTS}, lambdas, "task-arithmetic"
    )
    base = Checkpoint(pico / "base")
    experts = {n: Checkpoint(pico / n, base=base) for n in EXPERTS}
    for name, merged in found.items():
        start = base.read(name).double()
        expected = start + sum(
            lambdas[n] * (e.read(name).double() - start) for n, e in experts.items()
        )
        assert (merged.double() - expected).abs().max() < 1e-6


def test_cabs_is_base_plus_lambda_mask_tau(pico: Path) -> None:
    order = ["pair", "mood", "animal"]
    lambdas = {"mood": 0.3, "animal": -0.7, "pair": 1.9}
    found = cabs_search.merge(
        pico / "base", {n: pico / n for n in EXPERTS}, lambdas, nm=(2, 8), order=order
    )
    base = Checkpoint(pico / "base")
    for name, merged in found.items():
        start = base.read(name)
        deltas = [Checkpoint(pico / n, base=base).read(name) - start for n in order]
        masks = conflict_aware(deltas, 2, 8)
        expected = start + sum(
            lambdas[n] * d * m for n, d, m in zip(order, deltas, masks, strict=True)
        )
        assert torch.allclose(merged, expected, atol=1e-6)


def test_recipes_of_one_sum_are_one_merged_model_and_no_others_are(family: Family) -> None:
    values = [(0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.5, 1.0, 0.0), (0.0, 0.0, 0.0), (0.5, 1.0, 1.5)]
    lambdas = [dict(zip(EXPERTS, three, strict=True)) for three in values]
    by_group = {f"{e}.{g}": 0.0 for e in EXPERTS for g, _ in GROUPS} | {f"{EXPERTS[0]}.first": 0.5}
    models: dict[str, set[bytes]] = {}
    for name, order in itertools.product(("cabs", "ties-cabs", "task-arithmetic"), ORDERS):
        method = make_method(name, EXPERTS, nm=(3, 8), order=order)
        recipes = [make_recipe(method, by_expert) for by_expert in lambdas]
        for recipe in (*recipes, make_recipe(method, by_group, GROUPS)):
            tensors = [tensor.reshape(-1) for _, tensor in merged_tensors(family, recipe)]
            models.setdefault(recipe.sum_key, set()).add(torch.cat(tensors).numpy().tobytes())
    assert {len(equal) for equal in models.values()} == {1}
    assert len(set.union(*models.values())) == len(models)
    # The base; task arithmetic, where no order counts; CABS: one vector behind 5 ordered sets of
    # others, two or three in 6 orders each; TIES, where every vector has a vote: 6 orders each.
    assert len(models) == 1 + 5 + (3 * 5 + 2 * 6) + 5 * 6


def test_orders_with_a_common_prefix_share_entries(family: Family, tmp_path: Path) -> None:
    store = VectorCache(tmp_path)
    first = store.ensure(
        family, make_method("cabs", EXPERTS, nm=(2, 8), order=["mood", "animal", "pair"])
    )
    second = store.ensure(
        family, make_method("cabs", EXPERTS, nm=(2, 8), order=["mood", "pair", "animal"])
    )
    assert first["mood"] == second["mood"]
    assert first["pair"] != second["pair"]
    assert len(list(store.root.glob("*.safetensors"))) == 5


def test_a_mask_that_compares_vectors_depends_on_all_of_them(pico: Path, tmp_path: Path) -> None:
    """SCE selects other weights among other experts, whatever their λ."""
    two, others = (
        Family.open(pico / "base", {name: pico / name for name in names})
        for names in (("mood", "animal"), ("mood", "pair"))
    )
    cache = VectorCache(tmp_path)
    for name, is_same in (("magnitude", True), ("variance", False)):
        methods = (make_method(name, tuple(family.experts)) for family in (two, others))
        paths = [
            cache.paths(family, method)["mood"]
            for family, method in zip((two, others), methods, strict=True)
        ]
        assert (paths[0] == paths[1]) == is_same
    keys = {
        make_recipe(make_method("variance", tuple(family.experts)), lambdas).sum_key
        for family, lambdas in ((two, {"mood": 1, "animal": 0}), (others, {"mood": 1, "pair": 0}))
    }
    assert len(keys) == 2


def test_equal_experts_have_a_part_each_of_what_is_combined(pico: Path, tmp_path: Path) -> None:
    """TSV's parts of two equal vectors differ: their directions are turned apart."""
    twins = Family.open(pico / "base", {"a": pico / "mood", "b": pico / "mood"})
    method, cache = make_method("tsv", ("a", "b")), VectorCache(tmp_path)
    assert len(set(cache.paths(twins, method).values())) == 2
    recipe = make_recipe(method, {"a": 1.0, "b": 0.2})
    cached = dict(merged_tensors(twins, recipe, vectors=cache.open(cache.ensure(twins, method))))
    for name, fresh in merged_tensors(twins, recipe):
        assert torch.allclose(cached[name], fresh, atol=1e-6)


def test_entries_do_not_depend_on_where_the_weights_lie(
    pico: Path, family: Family, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(pico, tmp_path / "moved")
    moved = Family.open(tmp_path / "moved" / "base", {n: tmp_path / "moved" / n for n in EXPERTS})
    method = make_method("cabs", EXPERTS, nm=(2, 8))
    assert VectorCache(tmp_path).paths(moved, method) == VectorCache(tmp_path).paths(family, method)


def test_a_damaged_entry_is_built_again_with_a_warning(family: Family, tmp_path: Path) -> None:
    store, method = VectorCache(tmp_path), make_method("cabs", EXPERTS, nm=(2, 8))
    paths = store.ensure(family, method)
    good = paths["animal"].read_bytes()
    for damaged in (good[:-3], good[:200] + b"\xff" + good[201:], b""):
        paths["animal"].write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged and is built again"):
            store.ensure(family, method)
        assert paths["animal"].read_bytes() == good
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.ensure(family, method)


def test_an_entry_that_is_cut_while_it_is_mapped_is_built_again(
    family: Family, pico: Path, tmp_path: Path
) -> None:
    """To read beyond the end of a mapped file would end the process (SIGBUS)."""
    store, method = VectorCache(tmp_path), make_method("cabs", EXPERTS, nm=(2, 8))
    bench = Workbench(family, parse(pico_values(pico)).tasks, store, device="cpu")
    recipe = make_recipe(method, dict.fromkeys(EXPERTS, 1.0))
    bench.materialize(recipe)
    name = "encoder.layer.0.output.dense.weight"
    before = bench.resident._tensors[name].clone()
    path = store.paths(family, method)["animal"]
    for size in (100, path.stat().st_size // 2):
        with path.open("r+b") as file:
            file.truncate(size)
        with pytest.warns(UserWarning, match="damaged and is built again") as told:
            bench.materialize(make_recipe(method, dict.fromkeys(EXPERTS, 0.5)))
        assert str(path) in str(told[0].message)
        bench.materialize(recipe)
        assert torch.equal(bench.resident._tensors[name], before)


def build(arguments: tuple[Path, Path]) -> dict[str, bytes]:
    pico, root = arguments
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    paths = VectorCache(root).ensure(family, make_method("cabs", EXPERTS, nm=(2, 8)))
    return {name: path.read_bytes() for name, path in paths.items()}


def test_processes_may_build_one_entry_at_once(pico: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(build, [(pico, tmp_path)] * 3))
    assert found[0] == found[1] == found[2]
    left = sorted(path.suffix for path in VectorCache(tmp_path).root.rglob("*") if path.is_file())
    assert left == [".safetensors"] * 3, "no temporary file is left"


def test_a_failed_build_leaves_no_entry(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[tuple[str, None]]:
        raise RuntimeError("no space")

    monkeypatch.setattr(Family, "prune", broken)
    with pytest.raises(RuntimeError, match="no space"):
        VectorCache(tmp_path).ensure(family, make_method("task-arithmetic", EXPERTS))
    assert list(VectorCache(tmp_path).root.iterdir()) == []


def some_kept(numel: int, density: float) -> Kept | None:
    """Random values at random positions; all of them, without positions, at density 1."""
    if density == 1:
        return Kept(torch.randn(numel), None)
    positions = (torch.rand(numel) < density).nonzero().reshape(-1)
    return Kept.at(positions, torch.randn(len(positions)), numel)


@settings(max_examples=60, deadline=None)
@given(
    numel=st.one_of(st.integers(1, 700), st.sampled_from([4096, 65_536, 65_537, 200_001])),
    densities=st.lists(st.sampled_from([0.001, 0.05, 0.25, 0.6, 1.0]), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_machine_code_and_torch_add_up_alike(
    numel: int, densities: list[float], dtype: torch.dtype, seed: int
) -> None:
    """Product and sum in float32, one vector after another, then the base: the bits of all three
    ways are equal. Inner products with a gradient, the other way round, are equal but for rounding.
    """
    pytest.importorskip("numba")
    torch.manual_seed(seed)
    kept = [k for k in (some_kept(numel, d) for d in densities) if k is not None]
    if not kept:
        return
    base, lambdas = torch.randn(numel).to(dtype), [0.3, -1.7, 2.0, 0.9][: len(kept)]
    total = np.full(numel, -0.0, np.float32)
    for one, lambda_ in zip(kept, lambdas, strict=True):
        where = slice(None) if one.positions is None else one.positions.numpy()
        total[where] += one.values.numpy() * np.float32(lambda_)
    expected = (base.float() + torch.from_numpy(total)).to(dtype)
    gradient = torch.randn(numel).to(dtype)
    gradient[5000:60_000] = 0  # as of the embeddings of words that no item has
    dense = [torch.zeros(numel, dtype=torch.float64) for _ in kept]
    for whole, one in zip(dense, kept, strict=True):
        whole[slice(None) if one.positions is None else one.positions] = one.values.double()
    products = [float(gradient.double() @ whole) for whole in dense]
    sizes = [float(gradient.double().abs() @ whole.abs()) for whole in dense]
    for vectors in (
        [Packed.of(k) for k in kept],
        [Placed.of(Packed.of(k), torch.device("cpu")) for k in kept],
    ):
        out = torch.empty(numel, dtype=dtype)
        summed = TensorSum(out, base, tuple(vectors))
        write_sums([(summed, lambdas)])
        assert torch.equal(bits(out), bits(expected))
        found, exact = summed.inner_products(gradient), summed.inner_products(gradient.double())
        assert found.dtype == np.float64
        assert (np.abs(found - products) <= 1e-7 * np.array(sizes)).all()
        assert (np.abs(exact - products) <= 1e-13 * np.array(sizes)).all()


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=64), seed=st.integers(0, 2**16)
)
def test_values_are_spread_out_alike_on_every_processor(words: list[int], seed: int) -> None:
    code = pytest.importorskip("cabs_search.merging.combine.kernels")
    bitmap = np.array(words, np.uint64)
    values = np.random.default_rng(seed).standard_normal(
        int(np.bitwise_count(bitmap).sum()) + 1, dtype=np.float32
    )
    found = []
    for add in (code.add_words_by_lanes, code.add_words_by_bits):
        total = np.zeros(64 * len(words), np.float32)
        assert add(total, bitmap, values, np.float32(0.7)) == len(values) - 1
        found.append(total)
    assert np.array_equal(found[0], found[1])
    assert np.count_nonzero(found[0]) == len(values) - 1


def test_where_numba_does_not_work_torch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("cabs_search.merging.combine.kernels")

    def damaged(*_: object) -> None:
        raise EOFError("the file ended")

    monkeypatch.setattr(module, "write", damaged)
    kernels.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match="numba does not work here, torch adds up instead: the file ended"
        ):
            assert kernels() is None
    finally:
        kernels.cache_clear()
