"""Our merged tensors against mergekit's, which `make .venv-mergekit` installs in an environment of
its own.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from transformers import AutoModel

import cabs_search
from tests.conftest import EXPERTS

MERGEKIT = Path(__file__).parents[2] / ".venv-mergekit"
TENSORS = "model.safetensors"
DENSITY = 0.3251
"""Near 0.3, where ours (to the nearest) and mergekit (down) keep equally many in a tensor of any
pico size.
"""
GAMMA = 0.063
"""Share of outliers that both round alike."""
TOLERANCE = 1e-6
"""Absolute. Weights are below 2 here, where float32 steps are at most 1.2e-7, and the same sums in
another order end a few steps apart. A weight kept, dropped or turned by mistake is off by what the
task vectors hold there, some 1e-2.
"""
LAMBDA = 0.7

Array = np.ndarray[Any, np.dtype[np.float32]]
Tensors = dict[str, Array]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trunks(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico family without heads: mergekit wants the same tensor names in all models."""
    root = tmp_path_factory.mktemp("trunks")
    for name in ("base", *EXPERTS):
        AutoModel.from_pretrained(pico / name).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def alike(trunks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trunks, whose experts have one more change in common: all tensors change, and at acute
    angles, as these methods want it.
    """
    root, draw = tmp_path_factory.mktemp("alike"), np.random.default_rng(0)
    shutil.copytree(trunks, root, dirs_exist_ok=True)
    common = {n: draw.normal(0, 0.1, t.shape) for n, t in read(trunks / "base").items()}
    for name in EXPERTS:
        own = read(root / name)
        moved = {n: (t + common[n]).astype(np.float32) for n, t in own.items()}
        save_file(moved, root / name / TENSORS, {"format": "pt"})
    return root


def read(folder: Path) -> Tensors:
    return load_file(folder / TENSORS)


def by_mergekit(
    trunks: Path,
    out: Path,
    method: str,
    weights: dict[str, float] | None,
    *,
    density: float | None = 1.0,
    experts: Sequence[str] = EXPERTS,
    has_base: bool = True,
    base: str = "base",
    dtype: str = "float32",
    **settings: Any,
) -> Tensors:
    """What mergekit makes of the trunks, by tensor name; a skip that says why where it is not
    installed. Methods without weights have no density either; ``density``: None for others.

    Its command for bare files of tensors: `mergekit-yaml` 0.1.5 stops at a BertModel, adding a list
    to a tuple.
    """
    if not (MERGEKIT / ".installed").exists():
        pytest.skip(f"mergekit is not installed: {reason()}")
    shares = {} if density is None else {"density": density}
    config: dict[str, Any] = {"merge_method": method, "parameters": settings, "dtype": dtype}
    config["models"] = [
        {
            "model": str(trunks / name / TENSORS),
            "parameters": {} if weights is None else {"weight": weights[name], **shares},
        }
        for name in experts
    ]
    if has_base:
        config["base_model"] = str(trunks / base / TENSORS)
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(config))
    command = [MERGEKIT / "bin" / "mergekit-pytorch", recipe, out, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return read(out)


def reason() -> str:
    """pip's first error, where `make test-all` has tried in vain."""
    log = MERGEKIT / "pip.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return next(
        (line for line in lines if line.startswith("ERROR")),
        "make .venv-mergekit does it, or tells why not",
    )


def by_us(trunks: Path, method: str, lambdas: dict[str, float], **settings: Any) -> Tensors:
    experts = {name: trunks / name for name in lambdas}
    merged = cabs_search.merge(trunks / "base", experts, lambdas, method=method, **settings)
    return {name: tensor.numpy() for name, tensor in merged.items()}


def trim(delta: Array, density: float) -> Array:
    """The int(density * size) largest magnitudes, zeros elsewhere."""
    kept = np.argsort(-np.abs(delta), axis=None, kind="stable")[: int(density * delta.size)]
    out = np.zeros_like(delta)
    out.flat[kept] = delta.flat[kept]
    return out


def by_hand(trunks: Path, *, mean: bool) -> Tensors:
    """TIES with one λ for all in a few lines: trim, elect a sign for each weight, take those that
    agree.
    """
    base, experts = read(trunks / "base"), [read(trunks / name) for name in EXPERTS]
    merged = {}
    for name, origin in base.items():
        deltas = np.stack([trim(expert[name] - origin, DENSITY) for expert in experts])
        agree = np.sign(deltas) == np.where(deltas.sum(axis=0) >= 0, 1, -1)
        total = (deltas * agree).sum(axis=0)
        merged[name] = origin + LAMBDA * (
            total / np.maximum(agree.sum(axis=0), 1) if mean else total
        )
    return merged


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


def test_the_density_keeps_equally_many_by_either_rounding(trunks: Path) -> None:
    sizes = {tensor.size for tensor in read(trunks / "base").values()}
    for share in (DENSITY, GAMMA):
        assert all(int(share * size) == int(share * size + 0.5) > 0 for size in sizes), sizes


def test_task_arithmetic_is_mergekits(trunks: Path, tmp_path: Path) -> None:
    lambdas = dict(zip(EXPERTS, (0.3, 1.1, -0.4), strict=True))
    assert_same(
        by_us(trunks, "task-arithmetic", lambdas),
        by_mergekit(trunks, tmp_path / "out", "task_arithmetic", lambdas),
    )


@pytest.mark.parametrize(
    ("method", "mean"), [("ties-sum-magnitude", False), ("ties-magnitude", True)]
)
def test_ties_is_mergekits(trunks: Path, tmp_path: Path, method: str, mean: bool) -> None:
    """One λ for all, given as mergekit's ``lambda``, with weights of 1.

    Its ``normalize``, the mean, divides by the weights that agree, which would cancel a λ among
    them; and it elects the sign of the weighted vectors, so that unequal weights make it another
    method than ours.
    """
    theirs = by_mergekit(
        trunks,
        tmp_path / "out",
        "ties",
        dict.fromkeys(EXPERTS, 1.0),
        density=DENSITY,
        normalize=mean,
        **{"lambda": LAMBDA},
    )
    assert_same(by_hand(trunks, mean=mean), theirs)
    assert_same(by_us(trunks, method, dict.fromkeys(EXPERTS, LAMBDA), density=DENSITY), theirs)


@pytest.mark.parametrize(
    ("method", "theirs"), [("breadcrumbs", "breadcrumbs"), ("ties-breadcrumbs", "breadcrumbs_ties")]
)
def test_breadcrumbs_are_mergekits(trunks: Path, tmp_path: Path, method: str, theirs: str) -> None:
    expected = by_mergekit(
        trunks,
        tmp_path / "out",
        theirs,
        dict.fromkeys(EXPERTS, 1.0),
        density=DENSITY,
        gamma=GAMMA,
        normalize=theirs.endswith("ties"),
        **{"lambda": LAMBDA},
    )
    lambdas = dict.fromkeys(EXPERTS, LAMBDA)
    assert_same(by_us(trunks, method, lambdas, density=DENSITY, gamma=GAMMA), expected)


@pytest.mark.parametrize(
    ("method", "theirs", "set_", "ours"),
    [
        ("sce", "sce", {"select_topk": DENSITY}, {"density": DENSITY}),
        ("ram", "ram", {}, {}),
        ("ram-plus", "ramplus_tl", {}, {}),
    ],
)
def test_methods_without_weights_are_mergekits(
    trunks: Path,
    tmp_path: Path,
    method: str,
    theirs: str,
    set_: dict[str, Any],
    ours: dict[str, Any],
) -> None:
    """Theirs have no weights: it is ours with λ = 1."""
    expected = by_mergekit(trunks, tmp_path / "out", theirs, None, **set_)
    assert_same(by_us(trunks, method, dict.fromkeys(EXPERTS, 1.0), **ours), expected)


def test_a_weighted_mean_is_mergekits(trunks: Path, tmp_path: Path) -> None:
    weights = dict(zip(EXPERTS, (0.3, 1.1, 0.4), strict=True))
    expected = by_mergekit(
        trunks, tmp_path / "out", "linear", weights, density=None, has_base=False
    )
    assert_same(by_us(trunks, "linear", weights), expected)


@pytest.mark.parametrize(
    ("method", "theirs", "weights"),
    [
        ("model-stock", "model_stock", None),
        ("multi-slerp", "multislerp", dict.fromkeys(EXPERTS, 1.0)),
    ],
)
def test_fixed_coefficients_are_mergekits(
    alike: Path, tmp_path: Path, method: str, theirs: str, weights: dict[str, float] | None
) -> None:
    expected = by_mergekit(alike, tmp_path / "out", theirs, weights)
    assert_same(by_us(alike, method, dict.fromkeys(EXPERTS, 1.0)), expected)


@pytest.mark.parametrize("name", ["nuslerp", "slerp"])
def test_two_models_on_an_arc_are_mergekits(alike: Path, tmp_path: Path, name: str) -> None:
    """Theirs of whole models has one of the two as its base, and t instead of weights."""
    one, other = EXPERTS[:2]
    weights = {one: 0.9, other: 0.6}
    given: dict[str, Any] = {"weights": weights}
    if name == "slerp":
        given = {"weights": None, "base": one, "t": 0.4}
    expected = by_mergekit(
        alike, tmp_path / "out", name, density=None, experts=[one, other], **given
    )
    assert_same(by_us(alike, name, weights), expected)


def test_the_karcher_mean_is_mergekits(trunks: Path, alike: Path, tmp_path: Path) -> None:
    """Theirs in float64: in float32 it loses angles below 3e-4, which arccos cannot tell from 0."""
    weights = dict.fromkeys(EXPERTS, 1.0)
    for place, folder in enumerate((trunks, alike)):
        out = tmp_path / str(place)
        expected = by_mergekit(folder, out, "karcher", None, has_base=False, dtype="float64")
        assert_same(by_us(folder, "karcher", weights), expected)


def test_weights_in_a_multi_slerp_are_mergekits(alike: Path, tmp_path: Path) -> None:
    """Theirs divides them by their sum: it is ours with λ that sum up to the number of experts."""
    weights = dict(zip(EXPERTS, (0.5, 1.0, 1.5), strict=True))
    expected = by_mergekit(alike, tmp_path / "out", "multislerp", weights)
    assert_same(by_us(alike, "multi-slerp", weights), expected)


def test_arcee_fusion_is_mergekits(trunks: Path, tmp_path: Path) -> None:
    """Theirs takes one expert; in float64, as ours: float32 loses the divergence of rows that
    hardly moved, and with it the rank of weights.
    """
    (name, *_) = EXPERTS
    out = tmp_path / "out"
    expected = by_mergekit(trunks, out, "arcee_fusion", None, experts=[name], dtype="float64")
    assert_same(by_us(trunks, "arcee-fusion", {name: 1.0}), expected)


def test_nearswap_is_mergekits(trunks: Path, tmp_path: Path) -> None:
    """Theirs takes one expert; a tenth of a task vector's standard deviation is near."""
    (name, *_) = EXPERTS
    expected = by_mergekit(trunks, tmp_path / "out", "nearswap", None, experts=[name], t=0.005)
    assert_same(by_us(trunks, "nearswap", {name: 1.0}, limit=0.005), expected)
