"""Statistics of the inputs of an expert's linear layers on calibration items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from cabs_search.checkpoints.writer import CheckpointWriter


class Calibration:
    """Statistics of one expert, mapped: G = XᵀX of every linear layer's inputs X."""

    def __init__(self, path: Path) -> None:
        self.path = path
        opened: Any = safe_open(path, framework="pt")
        self._file = opened
        self._names = frozenset(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata()
        self._transposed = frozenset(json.loads(self.metadata["transposed"]))
        self._same: dict[str, str] = json.loads(self.metadata["same"])

    @property
    def key(self) -> str:
        """Name that only statistics of the same expert and items have."""
        return self.path.stem

    def gram(self, tensor: str) -> Tensor | None:
        """Read G of the layer that has the weight: float32, [in, in], or its diagonal, [in].

        None if the tensor is no linear layer's weight.
        """
        if not self.knows(tensor):
            return None
        gram: Tensor = self._file.get_tensor(self._same.get(tensor, tensor))
        return gram

    def knows(self, tensor: str) -> bool:
        """Tell whether a tensor is a linear layer's weight; nothing is read."""
        return self._same.get(tensor, tensor) in self._names

    def is_transposed(self, tensor: str) -> bool:
        """Tell whether a weight is stored as [in, out], as GPT-2's are."""
        return tensor in self._transposed


def write_calibration(
    path: Path, grams: Mapping[str, Tensor], same: Mapping[str, str], transposed: Sequence[str]
) -> Calibration:
    """Write statistics to a file that appears whole or not at all.

    Args:
        path: the file.
        grams: G, or its diagonal, by the weight's shared name, float32.
        same: layers that see the same inputs as one of these, by name.
        transposed: weights that are stored as [in, out].

    """
    metadata = {"transposed": json.dumps(list(transposed)), "same": json.dumps(dict(same))}
    with CheckpointWriter(path, grams, metadata) as writer:
        for name, gram in grams.items():
            writer.add(name, gram)
    return Calibration(path)
