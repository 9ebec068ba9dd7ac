"""Statistics of pruned vectors: density by tensor and layer, overlap, norms and angles."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cabs_search.common.files import whole_file
from cabs_search.common.formats import show_bytes, table
from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.chunks import chunks, keep_memory
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rule import MaskRule
from cabs_search.merging.masks.rules import CALIBRATED
from cabs_search.merging.method import Method, split_name
from cabs_search.merging.sparse import Kept
from cabs_search.scoring.calibrate import calibrated, check_calibration
from cabs_search.search.candidates import Candidates
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items

BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
"""Number of a tensor's block in its name."""
Matrix = tuple[tuple[float, ...], ...]
"""One value for each pair of experts, in pruning order."""
Floats = npt.NDArray[np.float64]
PART = 1 << 22
"""Weights of a tensor that are looked at together."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Statistics of the vectors of one method with its settings."""

    method: str
    experts: tuple[str, ...]
    """Experts in pruning order."""
    density: Mapping[str, Mapping[str, float]]
    """Share of weights kept, by tensor and expert."""
    depth: Mapping[str, Mapping[str, float]]
    """Share of weights kept, by layer from bottom to top and expert; CABS's BS balances it."""
    kept: Mapping[str, float]
    """Share of all shared weights kept, by expert."""
    overlap: Matrix
    """|mask_a and mask_b| / |mask_a|, a in rows, b in columns."""
    norm: Mapping[str, float]
    """L2 norm of the whole task vector, by expert."""
    kept_norm: Mapping[str, float]
    """L2 norm of the kept weights, by expert."""
    cosine: Matrix
    """Cosines of whole task vectors."""
    kept_cosine: Matrix
    """Cosines of the kept weights."""
    cache_bytes: Mapping[str, int]
    """Bytes in the cache, by expert."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """Format for a terminal."""
        names = self.experts
        rows = [[t, *(f"{d[e]:.4f}" for e in names)] for t, d in self.density.items()]
        rows += [
            ["all shared weights", *(f"{self.kept[e]:.4f}" for e in names)],
            ["bytes in the cache", *(show_bytes(self.cache_bytes[e]) for e in names)],
        ]
        depth = [[layer, *(f"{d[e]:.4f}" for e in names)] for layer, d in self.depth.items()]
        norms = [
            ["whole", *(f"{self.norm[e]:.4g}" for e in names)],
            ["kept", *(f"{self.kept_norm[e]:.4g}" for e in names)],
        ]
        parts = [
            [self.method],
            table([["density", *names], *rows]),
            table([["density by layer", *names], *depth]),
            table([["overlap", *names], *_rows(names, self.overlap, ".2%")]),
            table([["norm", *names], *norms]),
            table([["cosine, whole", *names], *_rows(names, self.cosine, ".4f")]),
            table([["cosine, kept", *names], *_rows(names, self.kept_cosine, ".4f")]),
        ]
        return "\n\n".join("\n".join(part) for part in parts)


def _rows(names: tuple[str, ...], matrix: Matrix, form: str) -> list[list[str]]:
    return [
        [name, *(format(value, form) for value in row)]
        for name, row in zip(names, matrix, strict=True)
    ]


def vectors(spec: Spec, only: Sequence[str] = ()) -> list[Vectors]:
    """Compute statistics of a space's vectors; build those that the cache lacks.

    Args:
        spec: the study.
        only: names of methods, of the space or not; none: the space's and its baselines'.

    Raises:
        ValueError: the spec's models are wrong, or there is no such method.

    """
    keep_memory()
    for name in only:
        split_name(name)
    if only:
        space = spec.space.replace(method=tuple(dict.fromkeys(only)))
        spec = replace(spec, space=space, baselines={})
    spec = replace(spec, space=spec.space.replace(density_shared=True))
    family, store = (
        Family.open(spec.base, spec.experts, spec.vocabulary, spec.pickled),
        VectorCache(cache_folder()),
    )
    methods: dict[MaskRule, Method] = {}
    for method in Candidates.of(spec).all_methods():
        methods.setdefault(method.mask, method)
    if any(isinstance(mask, CALIBRATED) for mask in methods):
        check_calibration(spec.methods, spec.experts, spec.tasks)
        items = load_study_items(spec)["search"]
        family = calibrated(family, items, methods, cache_folder(), spec.device)
    with tqdm(methods.values(), desc="vectors", unit="method", file=sys.stderr) as bar:
        return [inspect(family, store, method) for method in bar]


def inspect(family: Family, store: VectorCache, method: Method) -> Vectors:
    """Compute statistics of one method's vectors, some weights of a tensor at a time."""
    opened = store.open(store.ensure(family, Method(mask=method.mask)))
    names, tensors = tuple(opened), family.alignment.shared
    # Sums over tensors of M Mᵀ, with a row of M for each expert: its mask, its task vector before
    # pruning, and after.
    common, before, after = (np.zeros((len(names), len(names))) for _ in range(3))
    for tensor in tensors:
        deltas = [family.vectors[name][tensor] for name in names]
        parts = chunks(size := family.numel(tensor), PART)
        pruned = [_dense(opened[name].kept(tensor, size), parts) for name in names]
        for part, *of_experts in zip(parts, *pruned, strict=True):
            whole = np.stack([delta.part(part).numpy() for delta in deltas])
            kept = np.stack(of_experts)
            masks = (kept != 0).astype(np.float32)
            for total, rows in ((common, masks), (before, whole), (after, kept)):
                total += rows @ rows.T
    norms, kept_norms = np.sqrt(np.diag(before)), np.sqrt(np.diag(after))
    return Vectors(
        method=str(method),
        experts=names,
        density={tensor: _shares(family, opened, [tensor]) for tensor in tensors},
        depth=_by_depth(family, opened),
        kept=_shares(family, opened, tensors),
        overlap=_matrix(common / np.maximum(np.diag(common), 1)[:, None]),
        norm=dict(zip(names, norms.tolist(), strict=True)),
        kept_norm=dict(zip(names, kept_norms.tolist(), strict=True)),
        cosine=_matrix(_cosines(before, norms)),
        kept_cosine=_matrix(_cosines(after, kept_norms)),
        cache_bytes={n: v.bytes for n, v in opened.items()},
    )


def layer_of(tensor: str) -> str:
    """Return the layer of a tensor, from its name."""
    if block := BLOCK.search(tensor):
        return f"block {block[1]}"
    return "embeddings" if re.search("embed|wte|wpe", tensor) else "other"


def _by_depth(family: Family, opened: Mapping[str, StoredVector]) -> dict[str, dict[str, float]]:
    tensors: dict[str, list[str]] = {}
    for tensor in family.alignment.shared:
        tensors.setdefault(layer_of(tensor), []).append(tensor)
    ends = {"embeddings": -1, "other": 1 << 30}
    layers = sorted(tensors, key=lambda name: ends[name] if name in ends else int(name.split()[1]))
    return {layer: _shares(family, opened, tensors[layer]) for layer in layers}


def _shares(
    family: Family, opened: Mapping[str, StoredVector], tensors: Sequence[str]
) -> dict[str, float]:
    """Return the share of the tensors' weights kept, by expert."""
    weights = sum(map(family.numel, tensors))
    return {
        expert: sum(vector.kept_per_tensor.get(t, 0) for t in tensors) / weights
        for expert, vector in opened.items()
    }


def _dense(kept: Kept | None, parts: Sequence[slice]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield what is kept of parts of a tensor, one after another; 0 where nothing is."""
    first = 0
    for part in parts:
        values = np.zeros(part.stop - part.start, np.float32)
        if kept is not None and kept.mask is None:
            values[:] = kept.values[part].numpy()
        elif kept is not None and kept.mask is not None:
            mask = kept.mask[part].numpy()
            last = first + int(np.count_nonzero(mask))
            values[mask] = kept.values[first:last].numpy()
            first = last
        yield values


def _cosines(dots: Floats, norms: Floats) -> Floats:
    cosines: Floats = dots / np.maximum(np.outer(norms, norms), np.finfo(np.float64).tiny)
    return cosines


def _matrix(values: Floats) -> Matrix:
    return tuple(tuple(float(v) for v in row) for row in values)


def draw(methods: Sequence[Vectors], to: Path) -> None:
    """Draw a row for each method: density by layer, overlap, cosines of whole and kept vectors.

    Args:
        methods: one or more methods' vectors.
        to: a .png, .svg or .pdf file.

    Raises:
        ValueError: another kind of file.

    """
    check_picture(to)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.8 * len(methods)), layout="constrained")
    grid = figure.subplots(len(methods), 4, squeeze=False, width_ratios=[1.6, 1, 1, 1])
    for axes, vectors in zip(grid, methods, strict=True):
        _draw_depth(axes[0], vectors)
        _draw_matrix(axes[1], "overlap |a∧b| / |a|", vectors.experts, vectors.overlap)
        _draw_matrix(axes[2], "cosine of whole vectors", vectors.experts, vectors.cosine)
        _draw_matrix(axes[3], "cosine of what is kept", vectors.experts, vectors.kept_cosine)
    to.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(to) as temporary:
        figure.savefig(temporary, format=to.suffix[1:].lower(), dpi=110)


def check_picture(to: Path) -> None:
    """Raise ValueError unless a picture can be written to such a file."""
    if to.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--picture: a .png, .svg or .pdf file is needed, but got {to}")


def _draw_depth(ax: Any, vectors: Vectors) -> None:
    layers = list(vectors.depth)
    for expert in vectors.experts:
        shares = [vectors.depth[layer][expert] for layer in layers]
        ax.plot(layers, shares, marker="o", markersize=3, label=expert)
    ax.set(title=vectors.method, ylabel="share of weights kept", ylim=(0, None))
    ax.tick_params(axis="x", rotation=60)
    ax.legend(fontsize=8)


def _draw_matrix(ax: Any, title: str, names: tuple[str, ...], matrix: Matrix) -> None:
    ax.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    places = range(len(names))
    ax.set(title=title, xticks=places, yticks=places, xticklabels=names, yticklabels=names)
    ax.tick_params(axis="x", rotation=60)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            color = "white" if value > 0.6 else "black"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
