"""What pruned vectors look like: how much of each tensor and layer is kept, where vectors meet,
norms and angles.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from cabs_search.common.files import whole_file
from cabs_search.common.formats import show_bytes, table
from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rules import CALIBRATED, Mask
from cabs_search.merging.recipe import Method, split_name
from cabs_search.merging.sparse import Kept
from cabs_search.scoring.calibrate import calibrated, check_calibration
from cabs_search.search.candidates import baselines, methods_of
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items

BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
"""Where a tensor's name says which block it is in."""
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """The pruned vectors of one method with its settings."""

    method: str
    experts: tuple[str, ...]
    """In pruning order."""
    density: Mapping[str, Mapping[str, float]]
    """By tensor and expert, the share of weights kept."""
    depth: Mapping[str, Mapping[str, float]]
    """By layer from bottom to top and expert, the share of weights kept: what BS balances."""
    kept: Mapping[str, float]
    """By expert, the share of all shared weights kept."""
    overlap: Matrix
    """|mask_a and mask_b| / |mask_a|, a down, b across."""
    norm: Mapping[str, float]
    """By expert, the L2 norm of the whole task vector."""
    kept_norm: Mapping[str, float]
    """By expert, the L2 norm of what is kept."""
    cosine: Matrix
    """Between whole task vectors."""
    kept_cosine: Matrix
    """Between what is kept of them."""
    cache_bytes: Mapping[str, int]
    """By expert."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For a terminal."""
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
    """Build what the cache lacks of a space's vectors, and look at them.

    Args:
        spec: the study.
        only: methods to look at, of the space or not; none: the space's and its baselines'.

    Raises:
        ValueError: the spec's models are wrong, or there is no such method.

    """
    for name in only:
        split_name(name)
    if only:
        spec = replace(spec, space=spec.space.but(method=tuple(dict.fromkeys(only))), baselines={})
    spec = replace(spec, space=spec.space.but(density_shared=True))
    family, store = Family.open(spec.base, spec.experts), VectorCache(cache_folder())
    methods: dict[Mask, Method] = {}
    for method in (*methods_of(spec), *(r.method for r in baselines(spec))):
        methods.setdefault(method.mask, method)
    if any(isinstance(mask, CALIBRATED) for mask in methods):
        check_calibration(spec)
        items = load_study_items(spec)["search"]
        family = calibrated(family, items, methods, cache_folder(), spec.device)
    with tqdm(methods.values(), desc="vectors", unit="method", file=sys.stderr) as bar:
        return [inspect(family, store, method) for method in bar]


def inspect(family: Family, store: VectorCache, method: Method) -> Vectors:
    """Look at one method's vectors, tensor by tensor."""
    opened = store.open(store.ensure(family, Method(mask=method.mask)))
    names = tuple(opened)
    common, before, after = (np.zeros((len(names), len(names))) for _ in range(3))
    for tensor in family.alignment.shared:
        whole = np.stack([family.delta(tensor, name).reshape(-1).numpy() for name in names])
        kept = np.stack(
            [_dense(opened[name].kept(tensor, whole.shape[1]), whole.shape[1]) for name in names]
        )
        masks = (kept != 0).astype(np.float32)
        for total, part in ((common, masks), (before, whole), (after, kept)):
            total += part @ part.T
    density = {
        t: {n: v.kept_per_tensor.get(t, 0) / family.numel(t) for n, v in opened.items()}
        for t in family.alignment.shared
    }
    norms, kept_norms = np.sqrt(np.diag(before)), np.sqrt(np.diag(after))
    return Vectors(
        method=str(method),
        experts=names,
        density=density,
        depth=_by_depth(family, opened),
        kept=_shares(family, opened, family.alignment.shared),
        overlap=_matrix(common / np.maximum(np.diag(common), 1)[:, None]),
        norm=dict(zip(names, norms.tolist(), strict=True)),
        kept_norm=dict(zip(names, kept_norms.tolist(), strict=True)),
        cosine=_matrix(_cosines(before, norms)),
        kept_cosine=_matrix(_cosines(after, kept_norms)),
        cache_bytes={n: v.bytes for n, v in opened.items()},
    )


def layer_of(tensor: str) -> str:
    """The layer that a tensor's name says it is in."""
    if found := BLOCK.search(tensor):
        return f"block {found[1]}"
    return "embeddings" if re.search("embed|wte|wpe", tensor) else "other"


def _by_depth(family: Family, opened: Mapping[str, StoredVector]) -> dict[str, dict[str, float]]:
    tensors: dict[str, list[str]] = {}
    for tensor in family.alignment.shared:
        tensors.setdefault(layer_of(tensor), []).append(tensor)
    ends = {"embeddings": -1, "other": 1 << 30}
    layers = sorted(
        tensors, key=lambda layer: ends[layer] if layer in ends else int(layer.split()[1])
    )
    return {layer: _shares(family, opened, tensors[layer]) for layer in layers}


def _shares(
    family: Family, opened: Mapping[str, StoredVector], tensors: Iterable[str]
) -> dict[str, float]:
    """By expert, the share of the tensors' weights kept."""
    chosen = list(tensors)
    weights = sum(family.numel(t) for t in chosen)
    return {
        n: sum(v.kept_per_tensor.get(t, 0) for t in chosen) / weights for n, v in opened.items()
    }


def _dense(kept: Kept | None, numel: int) -> npt.NDArray[np.float32]:
    values = torch.zeros(numel)
    if kept is not None:
        values[slice(None) if kept.positions is None else kept.positions] = kept.values
    found: npt.NDArray[np.float32] = values.numpy()
    return found


def _cosines(
    dots: npt.NDArray[np.float64], norms: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = dots / np.maximum(
        np.outer(norms, norms), np.finfo(np.float64).tiny
    )
    return found


def _matrix(values: npt.NDArray[np.float64]) -> Matrix:
    return tuple(tuple(float(v) for v in row) for row in values)


def draw(found: list[Vectors], to: Path) -> None:
    """A picture, a row for each method: density against depth, overlap, cosines whole and kept.

    Args:
        found: what ``vectors`` found.
        to: a .png, .svg or .pdf file.

    Raises:
        ValueError: another kind of file.

    """
    check_picture(to)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.8 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 4, squeeze=False, width_ratios=[1.6, 1, 1, 1])
    for axes, one in zip(grid, found, strict=True):
        layers = list(one.depth)
        for expert in one.experts:
            axes[0].plot(
                layers,
                [one.depth[layer][expert] for layer in layers],
                marker="o",
                markersize=3,
                label=expert,
            )
        axes[0].set(title=one.method, ylabel="share of weights kept", ylim=(0, None))
        axes[0].tick_params(axis="x", rotation=60)
        axes[0].legend(fontsize=8)
        for ax, title, matrix in (
            (axes[1], "overlap |a∧b| / |a|", one.overlap),
            (axes[2], "cosine of whole vectors", one.cosine),
            (axes[3], "cosine of what is kept", one.kept_cosine),
        ):
            _heat(ax, title, one.experts, matrix)
    to.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(to) as temporary:
        figure.savefig(temporary, format=to.suffix[1:], dpi=110)


def check_picture(to: Path) -> None:
    """Raises ValueError where a picture cannot be written so."""
    if to.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--picture: a .png, .svg or .pdf file is needed, but got {to}")


def _heat(ax: Any, title: str, names: tuple[str, ...], matrix: Matrix) -> None:
    ax.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    ax.set(
        title=title,
        xticks=range(len(names)),
        yticks=range(len(names)),
        xticklabels=names,
        yticklabels=names,
    )
    ax.tick_params(axis="x", rotation=60)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            ax.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.6 else "black",
            )
