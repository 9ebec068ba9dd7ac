"""Layers of a model, known by its tensors' names, and values between anchors spread over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<number>\d+)\.(?P<module>[^.]+)")
"""Name of a tensor in a layer, such as ``encoder.layer.3.attention.output.dense.weight``."""
LEAST_ANCHORS = 2
MOST_LAYERS = 1000


@lru_cache(maxsize=100_000)
def layer_of(tensor: str) -> int | None:
    """Return the number of a tensor's layer, from 0; None if it is in none, as embeddings are."""
    match = LAYER.match(tensor)
    return int(match["number"]) if match else None


def count_layers(tensors: Iterable[str]) -> int:
    """Count a model's layers: the largest number and one; 0 if no tensor is in a layer."""
    return 1 + max((number for number in map(layer_of, tensors) if number is not None), default=-1)


def depth_of(layer: int | None, layers: int) -> float:
    """Return how deep a layer is, from 0, the first, to 1, the last.

    A tensor outside all layers, the output layer too, is as deep as the first, as in mergekit
    0.1.5.
    """
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


def between(anchors: Sequence[float], depth: float) -> float:
    """Return the value at a depth from 0 to 1, on the straight line between two anchors.

    Args:
        anchors: values at places spread evenly from depth 0 to 1, one at the least.
        depth: where.

    """
    place = depth * (len(anchors) - 1)
    low = min(int(place), len(anchors) - 1)
    high = min(low + 1, len(anchors) - 1)
    return anchors[low] + (place - low) * (anchors[high] - anchors[low])


def spread(anchors: Sequence[float], layers: int) -> list[float]:
    """Return the values of all layers, the first to the last, rounded to 1e-9 as λ are."""
    depths = (depth_of(layer, layers) for layer in range(layers))
    return [round(between(anchors, depth), 9) + 0.0 for depth in depths]


def check_anchors(anchors: int, layers: int) -> None:
    """Raise ValueError unless so many anchors can be spread over so many layers."""
    if not LEAST_ANCHORS <= anchors <= layers <= MOST_LAYERS:
        raise ValueError(
            f"{LEAST_ANCHORS} <= anchors <= layers <= {MOST_LAYERS} must hold, but got"
            f" (anchors={anchors}, layers={layers})"
        )
