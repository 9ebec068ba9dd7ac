"""Statistics of an expert on calibration items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from safetensors import safe_open
from torch import Tensor

from cabs_search.checkpoints.writer import CheckpointWriter

Pass: TypeAlias = Literal["layers", "fisher"]
"""A forward pass that collects XᵀX of layers, or a backward pass for the Fisher information."""
CalibrationKey: TypeAlias = tuple[Pass, str]
"""A pass, and the expert that ran."""


class Calibration:
    """Statistics of one expert, mapped: G = XᵀX of every linear layer's inputs X; or the diagonal
    of its Fisher information, divided by its root mean square.
    """

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

    def read(self, tensor: str) -> Tensor | None:
        """Read G of the layer that has the weight: float32, [in, in], or its diagonal, [in]; or the
        Fisher information of the tensor, in its shape.

        None if the tensor is no linear layer's weight, or the model has no such tensor.
        """
        if not self.knows(tensor):
            return None
        found: Tensor = self._file.get_tensor(self._same.get(tensor, tensor))
        return found

    def knows(self, tensor: str) -> bool:
        """Tell whether there are statistics of a tensor; nothing is read."""
        return self._same.get(tensor, tensor) in self._names

    def is_transposed(self, tensor: str) -> bool:
        """Tell whether a weight is stored as [in, out], as GPT-2's are."""
        return tensor in self._transposed


def write_calibration(
    path: Path,
    found: Mapping[str, Tensor],
    same: Mapping[str, str] | None = None,
    transposed: Sequence[str] = (),
) -> Calibration:
    """Write statistics to a file that appears whole or not at all.

    Args:
        path: the file.
        found: what ``Calibration.read`` returns by the weight's shared name, float32.
        same: layers that see the same inputs as one of these, by name.
        transposed: weights that are stored as [in, out].

    """
    metadata = {"transposed": json.dumps(list(transposed)), "same": json.dumps(dict(same or {}))}
    with CheckpointWriter(path, found, metadata) as writer:
        for name, tensor in found.items():
            writer.add(name, tensor)
    return Calibration(path)
