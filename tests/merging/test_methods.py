"""Every mask rule and combine rule against an independent oracle: peft's merge utilities, or a
naive reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch import Tensor

import cabs_search
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.calibration import Calibration, write_calibration
from cabs_search.merging.combine.gram import products_of
from cabs_search.merging.combine.sums import TensorSum, write_sums
from cabs_search.merging.family import Family
from cabs_search.merging.masks.calibrated import DAMPING, sparsegpt, wanda_scores
from cabs_search.merging.masks.della import keep_chances
from cabs_search.merging.masks.prune import prune
from cabs_search.merging.masks.rule import TensorView
from cabs_search.merging.masks.selection import share
from cabs_search.merging.method import METHOD_NAMES, Method, make_method
from cabs_search.merging.packed import Packed
from cabs_search.merging.recipe import make_recipe
from cabs_search.merging.sparse import Kept
from cabs_search.merging.task_vector import Delta, task_vector
from tests.conftest import EXPERTS

NAMES = ("a", "b", "c")
LAMBDAS = {"a": 0.7, "b": -1.3, "c": 2.0}


def made_up(seed: int, *shape: int, count: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(shape) for name in NAMES[:count]}


def prune_all(
    method: Method,
    vectors: Mapping[str, Mapping[str, Tensor]],
    tensor: str = "w",
    calibrations: Mapping[str, Calibration] | None = None,
) -> dict[str, Kept | None]:
    """What a rule keeps of one tensor of each vector, which are given by expert and tensor."""
    deltas = {e: {t: Delta(tau) for t, tau in own.items()} for e, own in vectors.items()}
    survey = {expert: method.mask.survey(expert, own) for expert, own in deltas.items()}
    return dict(prune(method.mask, tensor, deltas, survey, calibrations or {}, {}))


def pruned(
    method: Method,
    deltas: Mapping[str, Tensor],
    tensor: str = "w",
    calibrations: Mapping[str, Calibration] | None = None,
) -> dict[str, Tensor]:
    """What a rule keeps of each vector, dense."""
    shape = next(iter(deltas.values())).shape
    found = {}
    vectors = {expert: {tensor: tau} for expert, tau in deltas.items()}
    for name, kept in prune_all(method, vectors, tensor, calibrations).items():
        dense = torch.zeros(shape.numel())
        if kept is not None:
            dense[slice(None) if kept.positions is None else kept.positions] = kept.values
        found[name] = dense.reshape(shape)
    return found


def change(
    method: Method,
    deltas: Mapping[str, Tensor],
    lambdas: Mapping[str, float],
    base: Tensor | None = None,
) -> Tensor:
    """A merged tensor of which the base is 0, unless it is given."""
    kept = prune_all(method, {expert: {"w": tau} for expert, tau in deltas.items()})
    out = torch.zeros_like(next(iter(deltas.values())))
    base = torch.zeros_like(out) if base is None else base
    left = method.combine.combine(list(kept.values()), out.shape)
    parts = {name: Packed.of(k) for name, k in zip(kept, left, strict=True) if k is not None}
    if parts:
        products = products_of(method.combine, kept.values(), base)
        factors, of_base = method.combine.weigh({n: lambdas[n] for n in kept}, products)
        one = TensorSum(out.view(-1), base.view(-1), tuple(parts.values()), of_base)
        write_sums([(one, [factors[name] for name in parts])])
    return out


def peft_inputs(deltas: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    return list(deltas.values()), torch.tensor([LAMBDAS[name] for name in deltas])


def test_task_arithmetic_is_pefts() -> None:
    deltas = made_up(0, 40, 25)
    ours = change(make_method("task-arithmetic", NAMES), deltas, LAMBDAS)
    assert torch.allclose(ours, merge_utils.task_arithmetic(*peft_inputs(deltas)), atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.filterwarnings("ignore:The density 1.0")
def test_magnitude_and_ties_are_pefts(density: float) -> None:
    """1,000 weights, so that both keep the same count at these densities."""
    deltas = made_up(1, 40, 25)
    for name, oracle in (
        ("magnitude", merge_utils.magnitude_prune),
        ("ties-magnitude", merge_utils.ties),
    ):
        ours = change(make_method(name, NAMES, density=density), deltas, LAMBDAS)
        assert torch.allclose(ours, oracle(*peft_inputs(deltas), density), atol=1e-6), name


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_and_its_ties_are_pefts_with_our_mask(
    density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = made_up(2, 40, 25)
    masks = {
        name: kept != 0
        for name, kept in pruned(make_method("dare", NAMES, density=density), deltas).items()
    }
    for name, oracle in (("dare", merge_utils.dare_linear), ("ties-dare", merge_utils.dare_ties)):
        given_masks = iter(masks.values())
        monkeypatch.setattr(torch, "bernoulli", lambda _, m=given_masks: next(m).float())
        ours = change(make_method(name, NAMES, density=density), deltas, LAMBDAS)
        assert torch.allclose(ours, oracle(*peft_inputs(deltas), density), atol=1e-5), name


def test_whole_models_are_pefts(pico: Path) -> None:
    """The same through checkpoints: every tensor of a merge, for the methods that go tensor by
    tensor.
    """
    lambdas = dict(zip(EXPERTS, LAMBDAS.values(), strict=True))
    base = Checkpoint(pico / "base")
    experts = {name: Checkpoint(pico / name, base=base) for name in EXPERTS}
    for method, oracle in (
        ("magnitude", merge_utils.magnitude_prune),
        ("ties-magnitude", merge_utils.ties),
    ):
        found = cabs_search.merge(
            pico / "base", {n: pico / n for n in EXPERTS}, lambdas, method, density=0.3251
        )
        for name, merged in found.items():
            deltas = [task_vector(base, expert, name).whole() for expert in experts.values()]
            assert int(0.3251 * merged.numel()) == share(0.3251, merged.numel()), (
                "peft and ours keep as many"
            )
            expected = base.read(name) + oracle(
                deltas, torch.tensor(list(lambdas.values())), 0.3251
            )
            assert torch.allclose(merged, expected, atol=1e-6), (method, name)


def naive_ties(vectors: list[np.ndarray], lambdas: list[float], *, mean: bool) -> np.ndarray:
    """TIES' second and third step, one weight at a time."""
    merged = np.zeros(vectors[0].size)
    for i in range(merged.size):
        values = [float(v.reshape(-1)[i]) for v in vectors]
        sign = 1.0 if sum(values) >= 0 else -1.0
        agreeing = [(v, x) for v, x in zip(values, lambdas, strict=True) if v * sign > 0]
        if agreeing:
            merged[i] = sum(v * x for v, x in agreeing) / (len(agreeing) if mean else 1)
    return merged.reshape(vectors[0].shape)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.4, 1.0]), st.booleans())
def test_ties_is_the_naive_one(seed: int, density: float, mean: bool) -> None:
    deltas = {
        name: (4 * tau).round() / 4 for name, tau in made_up(seed, 5, 7).items()
    }  # ties, zeros and zero sums
    for mask in ("magnitude-vector", "magnitude", "dare", "cabs", "task-arithmetic"):
        suffix = "" if mask == "magnitude-vector" else f"-{mask}"
        method = make_method(
            f"ties{'' if mean else '-sum'}{suffix}", NAMES, density=density, nm=(2, 5)
        )
        vectors = pruned(make_method(mask, NAMES, density=density, nm=(2, 5)), deltas)
        expected = naive_ties(
            [v.numpy() for v in vectors.values()], [LAMBDAS[n] for n in vectors], mean=mean
        )
        assert np.allclose(change(method, deltas, LAMBDAS).numpy(), expected, atol=1e-5), mask


def test_cabs_whose_overlap_is_merged_as_ties_is_ties_cabs() -> None:
    assert make_method("cabs", NAMES, overlap_merge="ties") == make_method("ties-cabs", NAMES)
    assert make_method("ca", NAMES, overlap_merge="ties") == make_method("ties-ca", NAMES)
    assert make_method("dare", NAMES, overlap_merge="ties") == make_method("dare", NAMES), (
        "it has no overlap to merge"
    )


def naive_top(values: np.ndarray, count: int) -> np.ndarray:
    """The largest |values|, ties by the lower index, zeros never."""
    flat = np.abs(values.reshape(-1))
    by_size = sorted((i for i in range(flat.size) if flat[i] > 0), key=lambda i: (-flat[i], i))
    mask = np.zeros(flat.size, dtype=bool)
    mask[by_size[:count]] = True
    return mask.reshape(values.shape)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.01, 0.1, 0.37, 0.5, 1.0]),
    st.sampled_from([(6, 9), (13,), (2, 3, 4)]),
)
def test_magnitude_of_tensors_rows_and_sequences(
    seed: int, density: float, shape: tuple[int, ...]
) -> None:
    deltas = {name: (3 * tau).round() / 3 for name, tau in made_up(seed, *shape).items()}
    count = int(density * np.prod(shape) + 0.5)
    by_tensor = pruned(make_method("magnitude", NAMES, density=density), deltas)
    by_row = pruned(make_method("magnitude-row", NAMES, density=density), deltas)
    by_vector = pruned(make_method("magnitude-vector", NAMES, density=density), deltas)
    apart = pruned(
        make_method("ca", NAMES, density=density, order=("c", "a", "b"), overlap="drop"), deltas
    )
    taken = np.zeros(shape, dtype=bool)
    for name in ("c", "a", "b"):
        tau = deltas[name].numpy()
        assert np.array_equal(by_tensor[name].numpy(), tau * naive_top(tau, count))
        assert np.array_equal(by_vector[name].numpy(), tau * naive_top(tau, count)), (
            "one tensor is the whole vector"
        )
        rows = tau.reshape(shape[0], -1) if len(shape) > 1 else tau.reshape(1, -1)
        expected = np.stack([row * naive_top(row, int(density * row.size + 0.5)) for row in rows])
        assert np.array_equal(by_row[name].numpy(), expected.reshape(shape))
        mask = naive_top(np.where(taken, 0, tau), count)
        assert np.array_equal(apart[name].numpy(), tau * mask)
        taken |= mask


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.1, 0.37, 0.95, 1.0]), st.sampled_from([0.0, 0.1, 0.5])
)
def test_breadcrumbs_are_the_largest_behind_the_outliers(
    seed: int, density: float, gamma: float
) -> None:
    """What is left is as much as the density says: outliers are fewer where there is no room."""
    tau = (3 * made_up(seed, 6, 9, count=1)["a"]).round() / 3
    method = make_method("breadcrumbs", ("a",), density=density, gamma=gamma)
    outliers = min(int(gamma * 54 + 0.5), 54 - int(density * 54 + 0.5))
    both = naive_top(tau.numpy(), outliers + int(density * 54 + 0.5))
    expected = tau.numpy() * (both & ~naive_top(tau.numpy(), outliers))
    assert np.array_equal(pruned(method, {"a": tau})["a"].numpy(), expected)


@pytest.mark.parametrize(
    ("density", "epsilon", "used"), [(0.4, 0.15, 0.15), (0.1, 0.15, 0.05), (0.9, 0.3, 0.1)]
)
def test_della_keeps_by_rank_in_the_row(density: float, epsilon: float, used: float) -> None:
    """One weight at a time; ε is narrower where a probability would leave (0, 1]."""
    tau = (4 * made_up(8, 7, 12, count=1)["a"]).round() / 4
    expected = np.zeros((7, 12))
    for row, values in enumerate(tau.abs().tolist()):
        by_size = sorted(range(12), key=lambda j, v=values: (v[j], j))
        for rank, column in enumerate(by_size):
            expected[row, column] = density - used + 2 * used * rank / 11
    found = keep_chances(tau.reshape(-1).numpy(), 12, density, epsilon)
    assert np.allclose(found.reshape(7, 12), expected, atol=1e-12)
    method = make_method("della", ("a",), density=density, epsilon=epsilon, seed=3)
    kept = pruned(method, {"a": tau})["a"]
    where = kept != 0
    assert torch.allclose(kept[where], (tau / torch.from_numpy(expected).float())[where])


def test_della_keeps_its_share_and_the_vector_in_the_mean() -> None:
    tau = made_up(9, 200, 500, count=1)
    kept = pruned(make_method("della", ("a",), density=0.3, epsilon=0.1), tau)["a"]
    assert (kept != 0).float().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 1e5) ** 0.5)
    assert float((kept * tau["a"]).sum() / tau["a"].square().sum()) == pytest.approx(1, abs=0.03)
    for changes in ({"seed": 1}, {"epsilon": 0.2}):
        other = make_method("della", ("a",), density=0.3, **{"epsilon": 0.1, **changes})
        assert not torch.equal(pruned(other, tau)["a"], kept)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.floats(0.001, 1.0),
    st.integers(0, 10**6),
)
def test_a_whole_vector_is_cut_exactly(sizes: list[int], density: float, seed: int) -> None:
    """Over several tensors, with many equal magnitudes: the count is exact, ties go to the
    first.
    """
    torch.manual_seed(seed)
    tensors = {f"t{i}": (2 * torch.randn(size)).round() / 2 for i, size in enumerate(sizes)}
    method = make_method("magnitude-vector", ("a",), density=density)
    found = []
    for name, tau in tensors.items():
        kept = prune_all(method, {"a": tensors}, name)["a"]
        mask = np.zeros(tau.numel(), dtype=bool)
        if kept is not None:
            mask = kept.mask.numpy()
        found.append(mask)
    whole = torch.cat(list(tensors.values())).numpy()
    changed = sum(tau.numel() for tau in tensors.values() if tau.any())
    assert np.array_equal(np.concatenate(found), naive_top(whole, int(density * changed + 0.5)))


def test_frozen_tensors_are_no_part_of_a_vector() -> None:
    """So that its density means what it means for rules that go tensor by tensor."""
    tensors = {"frozen": torch.zeros(900), "w": torch.randn(100)}
    method = make_method("magnitude-vector", ("a",), density=0.25)
    kept = prune_all(method, {"a": tensors})["a"]
    assert kept is not None
    assert len(kept.values) == 25


def test_a_cut_tells_neighbouring_floats_apart() -> None:
    tau = torch.full((1000,), 1.0)
    tau[500:] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    kept = pruned(make_method("magnitude-vector", ("a",), density=0.5), {"a": tau})["a"]
    assert kept.nonzero().reshape(-1).tolist() == list(range(500, 1000))


def test_random_masks_keep_their_share_and_depend_on_names_only() -> None:
    deltas = {"a": torch.ones(200, 500), "b": torch.ones(200, 500)}
    for name in ("dare", "random", "random-rescaled"):
        method = make_method(name, ("a", "b"), density=0.1, seed=7)
        first, again = pruned(method, deltas), pruned(method, {"b": deltas["b"], "a": deltas["a"]})
        assert all(torch.equal(first[e], again[e]) for e in deltas), (
            "the order of experts makes no difference"
        )
        share_kept = (first["a"] != 0).float().mean()
        assert abs(share_kept - 0.1) < 4 * (0.1 * 0.9 / 100_000) ** 0.5
        together = ((first["a"] != 0) & (first["b"] != 0)).float().mean()
        assert abs(together - 0.01) < 4 * (0.01 * 0.99 / 100_000) ** 0.5, (
            "experts' masks are independent"
        )
        expected = 1.0 if name == "random" else 1 / 0.1
        assert torch.equal(first["a"][first["a"] != 0].unique(), torch.tensor([expected]))
        for other in (make_method(name, ("a", "b"), density=0.1, seed=8), method):
            tensor = "w" if other is not method else "v"
            assert not torch.equal(pruned(other, deltas, tensor)["a"], first["a"]), (
                "seed and tensor do"
            )
    masks = [
        pruned(make_method(n, ("a",), density=0.1), {"a": deltas["a"]})["a"] != 0
        for n in ("random", "random-rescaled")
    ]
    assert torch.equal(*masks), "the study of rescaling compares one mask with itself"


def test_random_masks_never_change() -> None:
    """What is in people's caches and tables was drawn so."""
    kept = pruned(
        make_method("dare", ("a",), density=0.25, seed=3), {"a": torch.ones(32)}, "encoder.weight"
    )["a"]
    assert kept.nonzero().reshape(-1).tolist() == [7, 12, 15, 16, 18, 20, 28]


def calibration_for(
    tmp_path: Path, inputs: Tensor, *, transposed: bool = False
) -> dict[str, Calibration]:
    gram = (inputs.double().T @ inputs.double()).float()
    return {
        "a": write_calibration(
            tmp_path / "a.safetensors", {"w": gram}, {}, ["w"] if transposed else []
        )
    }


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_wanda_is_its_formula(tmp_path: Path, density: float, transposed: bool) -> None:
    torch.manual_seed(3)
    tau, inputs = torch.randn(6, 20), torch.randn(50, 20) * torch.linspace(0.1, 3, 20)
    kept = pruned(
        make_method("wanda", ("a",), density=density),
        {"a": tau.T.contiguous() if transposed else tau},
        calibrations=calibration_for(tmp_path, inputs, transposed=transposed),
    )["a"]
    kept = kept.T if transposed else kept
    for row in range(6):
        scores = [abs(float(tau[row, j])) * float(inputs[:, j].norm()) for j in range(20)]
        best = sorted(range(20), key=lambda j: -scores[j])[: int(density * 20 + 0.5)]
        expected = torch.zeros(20)
        expected[best] = tau[row, best]
        assert torch.equal(kept[row], expected)


def naive_obs(tau: np.ndarray, gram: np.ndarray, density: float) -> np.ndarray:
    """Optimal brain surgeon from left to right, with a fresh inverse of what is left of the Hessian
    at every column.
    """
    weights, columns = tau.astype(np.float64).copy(), tau.shape[1]
    hessian = gram.astype(np.float64) + DAMPING * np.diag(gram).mean() * np.eye(columns)
    inverse_diagonal = [np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(columns)]
    for row in weights:
        saliency = row**2 / np.array(inverse_diagonal)
        keeps = set(np.argsort(-saliency)[: int(density * columns + 0.5)].tolist())
        for j in range(columns):
            if j not in keeps:
                inverse = np.linalg.inv(hessian[j:, j:])
                row[j:] -= row[j] / inverse[0, 0] * inverse[0]
                row[j] = 0.0
    return weights


@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_sparsegpt_is_a_naive_optimal_brain_surgeon(density: float) -> None:
    torch.manual_seed(4)
    tau, inputs = torch.randn(5, 24), torch.randn(60, 24) @ torch.randn(24, 24)
    gram = inputs.T @ inputs
    values, mask = sparsegpt(tau, gram, density)
    assert np.allclose(values.numpy(), naive_obs(tau.numpy(), gram.numpy(), density), atol=1e-4)
    assert torch.equal(mask, values != 0)


def test_sparsegpt_changes_a_layer_less_than_magnitude_does(tmp_path: Path) -> None:
    """More columns than are gone through at a time; features that are correlated, and one that was
    never seen.
    """
    torch.manual_seed(5)
    tau, inputs = (
        torch.randn(30, 300),
        torch.randn(500, 40) @ torch.randn(40, 300) + 0.3 * torch.randn(500, 300),
    )
    inputs[:, 17] = 0.0
    calibrations = calibration_for(tmp_path, inputs)
    errors = {}
    for name in ("sparsegpt", "wanda", "magnitude-row"):
        kept = pruned(
            make_method(name, ("a",), density=0.25), {"a": tau}, calibrations=calibrations
        )["a"]
        assert (kept != 0).sum(1).max() <= share(0.25, 300)
        assert name == "magnitude-row" or not kept[:, 17].any(), "what was never seen is not kept"
        errors[name] = float((inputs @ (tau - kept).T).square().mean())
    assert errors["sparsegpt"] < 0.5 * errors["magnitude-row"]
    assert errors["wanda"] < errors["magnitude-row"]


def test_calibrated_rules_fall_back_to_magnitude_where_no_linear_layer_is(tmp_path: Path) -> None:
    deltas = made_up(6, 12, 10, count=1)
    calibrations = calibration_for(tmp_path, torch.randn(20, 10))
    for name in ("wanda", "sparsegpt"):
        found = pruned(make_method(name, ("a",), density=0.3), deltas, "embeddings", calibrations)
        assert torch.equal(
            found["a"], pruned(make_method("magnitude", ("a",), density=0.3), deltas)["a"]
        )
        with pytest.raises(ValueError, match="must have a task to take calibration items from"):
            pruned(make_method(name, ("a",), density=0.3), deltas)


def statistics_of(
    tmp_path: Path, inputs: Mapping[str, Tensor], *, transposed: bool = False
) -> dict[str, Calibration]:
    """Statistics of each expert's layer "w" on inputs of its own."""
    return {
        name: write_calibration(
            tmp_path / f"{name}.safetensors",
            {"w": (x.double().T @ x.double()).float()},
            {},
            ["w"] if transposed else [],
        )
        for name, x in inputs.items()
    }


def least_squares(
    weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor], alpha: float
) -> np.ndarray:
    """The layer that is nearest to all experts' outputs on their inputs stacked, [out, in]. A Gram
    matrix with α times its off-diagonals is that of √α·X above √(1 - α)·‖x‖ on a diagonal.
    """
    xs, ys = [], []
    for name, x in inputs.items():
        own = x.double().numpy()
        norms = np.sqrt((own**2).sum(0))
        stacked = np.vstack([np.sqrt(alpha) * own, np.sqrt(1 - alpha) * np.diag(norms)])
        xs.append(stacked)
        ys.append(stacked @ weights[name].double().numpy().T)
    return np.linalg.lstsq(np.vstack(xs), np.vstack(ys), rcond=None)[0].T


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_regmean_is_the_least_squares_of_stacked_inputs(
    tmp_path: Path, alpha: float, transposed: bool
) -> None:
    torch.manual_seed(12)
    base, deltas = torch.randn(6, 20), made_up(12, 6, 20)
    inputs = {n: torch.randn(30 + 9 * i, 20) @ torch.randn(20, 20) for i, n in enumerate(NAMES)}
    parts = pruned(
        make_method("regmean", NAMES, alpha=alpha),
        {n: tau.T.contiguous() if transposed else tau for n, tau in deltas.items()},
        calibrations=statistics_of(tmp_path, inputs, transposed=transposed),
    )
    merged = base + sum(part.T if transposed else part for part in parts.values())
    whole = {name: base + tau for name, tau in deltas.items()}
    assert np.allclose(merged.numpy(), least_squares(whole, inputs, alpha), atol=2e-3)
    off = least_squares(whole, inputs, abs(alpha - 0.3))
    assert not np.allclose(merged.numpy(), off, atol=2e-2), "the oracle tells α apart"


def test_regmean_without_enough_items_stays_among_the_experts(tmp_path: Path) -> None:
    """Fewer tokens than features, a feature that no expert saw, and one that only ``a`` saw."""
    deltas = made_up(13, 6, 40, count=2)
    inputs = {name: torch.randn(8, 40) for name in deltas}
    inputs["a"][:, 3] = inputs["b"][:, 3] = inputs["b"][:, 5] = 0.0
    statistics = statistics_of(tmp_path, inputs)
    for alpha in (0.0, 0.9, 1.0):
        parts = pruned(
            make_method("regmean", ("a", "b"), alpha=alpha), deltas, calibrations=statistics
        )
        merged = parts["a"] + parts["b"]
        assert torch.allclose(merged[:, 3], (deltas["a"] + deltas["b"])[:, 3] / 2, atol=1e-4)
        assert merged.abs().max() < 10 * max(tau.abs().max() for tau in deltas.values())
        for name, x in inputs.items():
            error = (x @ (merged - deltas[name]).T).square().mean()
            mean = (x @ (deltas["a"] - deltas["b"]).T / 2).square().mean()
            assert error < mean, "nearer to each expert than the mean of both"
    only = pruned(make_method("regmean", ("a", "b"), alpha=0.0), deltas, calibrations=statistics)
    assert torch.allclose(only["a"][:, 5], deltas["a"][:, 5], atol=1e-4)
    assert not only["b"][:, 5].any()


def test_regmean_of_one_expert_is_the_expert_and_elsewhere_the_mean(tmp_path: Path) -> None:
    deltas = made_up(14, 6, 20)
    statistics = statistics_of(tmp_path, {name: torch.randn(50, 20) for name in NAMES})
    method = make_method("regmean", ("a",))
    alone = pruned(method, {"a": deltas["a"]}, calibrations=statistics)["a"]
    assert torch.allclose(alone, deltas["a"], atol=1e-5)
    for name, part in pruned(method, deltas, "embeddings", statistics).items():
        assert torch.allclose(part, deltas[name] / 3), "no linear layer's"
    with pytest.raises(ValueError, match="regmean: every expert must have .* b has none"):
        pruned(method, deltas, calibrations={"a": statistics["a"]})


def test_fisher_is_the_mean_weighted_by_fisher_information(tmp_path: Path) -> None:
    torch.manual_seed(15)
    base, deltas = torch.randn(6, 20), made_up(15, 6, 20)
    fishers = {name: torch.rand(6, 20) ** 8 for name in NAMES}
    for own in fishers.values():
        own[2, 3] = 0.0
    fishers["a"][4], fishers["b"][4] = 1.0, 0.0
    fishers["c"][4] = 0.0
    statistics = {
        name: write_calibration(tmp_path / f"{name}.safetensors", {"w": own})
        for name, own in fishers.items()
    }
    parts = pruned(make_method("fisher", NAMES), deltas, calibrations=statistics)
    merged = (base + sum(parts.values())).numpy()
    for row, column in np.ndindex(6, 20):
        own = {n: float(f[row, column]) + 1e-6 for n, f in fishers.items()}
        whole = {n: float((base + tau)[row, column]) for n, tau in deltas.items()}
        mean = sum(own[n] * whole[n] for n in NAMES) / sum(own.values())
        assert merged[row, column] == pytest.approx(mean, abs=1e-5)
    assert merged[2, 3] == pytest.approx(np.mean([(base + t)[2, 3] for t in deltas.values()]))
    assert np.allclose(merged[4], (base + deltas["a"])[4], atol=1e-4)
    for name, part in pruned(make_method("fisher", NAMES), deltas, "unused", statistics).items():
        assert torch.allclose(part, deltas[name] / 3), "no model uses it"


def test_what_a_vector_keeps_by_all_statistics_is_cached_by_all(pico: Path, tmp_path: Path) -> None:
    """Of Wanda only the vector whose statistics changed is another; of RegMean all are."""
    from dataclasses import replace

    family = Family.open(pico / "base", {n: pico / n for n in EXPERTS})
    cache = VectorCache(tmp_path)
    found = []
    for last in ("pair", "other"):
        files = {expert: tmp_path / f"{expert}.safetensors" for expert in EXPERTS[:2]}
        files["pair"] = tmp_path / f"{last}.safetensors"
        statistics = {("layers", e): write_calibration(path, {}) for e, path in files.items()}
        own = replace(family, calibrations=statistics)
        found.append({m: cache.paths(own, make_method(m, EXPERTS)) for m in ("wanda", "regmean")})
    one, other = found
    assert [e for e in EXPERTS if one["wanda"][e] != other["wanda"][e]] == ["pair"]
    assert [e for e in EXPERTS if one["regmean"][e] != other["regmean"][e]] == list(EXPERTS)
    own_alpha = cache.paths(own, make_method("regmean", EXPERTS, alpha=0.5))
    assert not set(own_alpha.values()) & set(other["regmean"].values())


def test_statistics_survive_the_disk(tmp_path: Path) -> None:
    inputs = torch.randn(9, 4)
    found = calibration_for(tmp_path, inputs, transposed=True)["a"]
    assert found.is_transposed("w")
    assert found.read("v") is None
    assert torch.allclose(
        wanda_scores(torch.ones(1, 4), found.read("w")), inputs.norm(dim=0), atol=1e-5
    )  # type: ignore[arg-type]


def test_each_expert_may_have_a_density_of_its_own() -> None:
    deltas = made_up(7, 30, 40)
    densities = tuple(zip(NAMES, (0.1, 0.2, 0.5), strict=True))
    for name in ("magnitude", "magnitude-row", "magnitude-vector", "ca"):
        found = pruned(make_method(name, NAMES, density=densities), deltas)
        assert [(found[n] != 0).float().mean().item() for n in NAMES] == pytest.approx(
            [0.1, 0.2, 0.5]
        )
    nms = tuple(zip(NAMES, ((1, 10), (1, 5), (10, 20)), strict=True))
    for name in ("bs", "cabs"):
        found = pruned(make_method(name, NAMES, nm=nms), deltas)
        assert [(found[n] != 0).float().mean().item() for n in NAMES] == pytest.approx(
            [0.1, 0.2, 0.5]
        )
    masks = [kept != 0 for kept in found.values()]
    assert not any((a & b).any() for i, a in enumerate(masks) for b in masks[:i]), (
        "CABS keeps them apart all the same"
    )
    assert make_method("cabs", NAMES, nm=tuple((n, (1, 4)) for n in NAMES)) == make_method(
        "cabs", NAMES, nm=(1, 4)
    )


def test_lambda_by_group_of_tensors(pico: Path) -> None:
    groups = (("embeddings", "embeddings"), ("lower", r"layer\.0\."), ("rest", "."))
    method = make_method("cabs", EXPERTS, nm=(2, 8))
    from cabs_search.merging.family import Family
    from cabs_search.merging.merge import merged_tensors

    family = Family.open(pico / "base", {n: pico / n for n in EXPERTS})
    values = {"embeddings": 0.0, "lower": 0.5, "rest": 2.0}
    grouped = make_recipe(method, {f"{e}.{g}": values[g] for e in EXPERTS for g in values}, groups)
    plain = {
        x: dict(merged_tensors(family, make_recipe(method, dict.fromkeys(EXPERTS, x))))
        for x in values.values()
    }
    for name, merged in merged_tensors(family, grouped):
        group = "embeddings" if "embeddings" in name else "lower" if "layer.0." in name else "rest"
        assert torch.equal(merged, plain[values[group]][name]), name


def test_groups_with_one_lambda_are_the_recipe_without_groups() -> None:
    method = make_method("task-arithmetic", NAMES)
    groups = (("lower", "layer.0"), ("rest", "."))
    same = make_recipe(method, {f"{e}.{g}": LAMBDAS[e] for e in NAMES for g, _ in groups}, groups)
    assert same == make_recipe(method, LAMBDAS)


def test_the_order_of_groups_names_another_recipe() -> None:
    """A tensor is in the first group that fits, so that the same groups in another order are
    another model.
    """
    method, values = make_method("task-arithmetic", ("a",)), {"a.x": 1.0, "a.y": 2.0}
    one = make_recipe(method, values, (("x", "layer"), ("y", ".")))
    other = make_recipe(method, values, (("y", "."), ("x", "layer")))
    assert one.lambda_of("a", "layer.0") != other.lambda_of("a", "layer.0")
    assert one.key != other.key


def test_names_of_methods_are_unique_and_parse() -> None:
    assert len(set(METHOD_NAMES)) == len(METHOD_NAMES)
    for name in METHOD_NAMES:
        assert make_method(name, NAMES).name == name
    with pytest.raises(ValueError, match="method must be one of"):
        make_method("magic", NAMES)
    with pytest.raises(ValueError, match="0 < density <= 1 must hold, but got 1.5"):
        make_method("dare", NAMES, density=1.5)
    with pytest.raises(ValueError, match="0 <= epsilon <= 0.5 must hold, but got 0.7"):
        make_method("della", NAMES, epsilon=0.7)
    with pytest.raises(ValueError, match="gamma must be a number, but got much"):
        make_method("breadcrumbs", NAMES, gamma="much")


def test_no_calibrated_method_without_a_study(pico: Path) -> None:
    with pytest.raises(
        ValueError, match="must have a task to take calibration items from, as it has in a study"
    ):
        cabs_search.merge(pico / "base", {"mood": pico / "mood"}, {"mood": 1.0}, "wanda")


def test_no_survey_is_needed_where_no_rule_needs_one() -> None:
    assert make_method("dare", NAMES).mask.survey("a", {"w": Delta(torch.ones(3))}) is None


def test_nearswap_cuts_changes_off() -> None:
    tau = torch.tensor([0.3, -0.02, 0.05, -9.0, 0.0])
    found = change(make_method("nearswap", ("a",), limit=0.05), {"a": tau}, {"a": 2.0})
    assert torch.allclose(found, 2 * torch.tensor([0.05, -0.02, 0.05, -0.05, 0.0]))


def test_arcee_fusion_keeps_what_stands_out() -> None:
    """One weight at a time: |τ| times the row's divergence, above the quartiles."""
    torch.manual_seed(11)
    for shape in ((6, 9), (13,), (2, 3, 4)):
        base, tau = torch.randn(shape), torch.randn(shape) * (torch.rand(shape) > 0.2)
        view = TensorView(tensor="w", expert="a", delta=Delta(base + tau, base))
        found = make_method("arcee-fusion", ("a",)).mask.select(view)
        rows = base.double().reshape(-1, shape[-1]).numpy()
        moved = rows + view.tau.reshape(rows.shape)
        p, q = ((e := np.exp(x)) / e.sum(axis=1, keepdims=True) + 1e-8 for x in (moved, rows))
        score = np.abs(view.tau.reshape(rows.shape)) * (p * np.log(p / q)).sum(1)[:, None]
        ranked = np.sort(score.reshape(-1))
        low, middle, high = (ranked[int(x * (ranked.size - 1))] for x in (0.25, 0.5, 0.75))
        expected = (score >= (middle + 1.5 * (high - low)) * (1 - 1e-6)).reshape(-1)
        assert np.array_equal(found.mask, expected & (view.weights != 0))
        assert np.array_equal(found.values, view.weights[found.mask])
