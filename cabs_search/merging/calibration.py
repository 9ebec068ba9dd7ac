"""Statistics of what an expert's linear layers saw on calibration items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from cabs_search.checkpoints.writer import CheckpointWriter


class Calibration:
    """One expert's statistics, mapped: G of every linear layer."""

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
        """A name that only statistics of the same expert and items have."""
        return self.path.stem

    def gram(self, tensor: str) -> Tensor | None:
        """G of the layer whose weight this is, float32, [in, in], or where no rule needs more its
        diagonal, [in].

        None where it is no linear layer's weight.
        """
        found: Tensor | None = (
            self._file.get_tensor(self._same.get(tensor, tensor)) if self.knows(tensor) else None
        )
        return found

    def knows(self, tensor: str) -> bool:
        """Whether it is a linear layer's weight; nothing is read."""
        return self._same.get(tensor, tensor) in self._names

    def is_transposed(self, tensor: str) -> bool:
        """Whether the weight is stored as [in, out], as GPT-2's are."""
        return tensor in self._transposed


def write_calibration(
    path: Path, grams: Mapping[str, Tensor], same: Mapping[str, str], transposed: Sequence[str]
) -> Calibration:
    """Write statistics, whole or not at all.

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
