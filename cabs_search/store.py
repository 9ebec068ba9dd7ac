"""The cache of pruned task vectors: content-addressed files, written once, mapped by every worker of a node.

An entry is one safetensors file named by the hash of everything that its content depends on: base, expert, mask rule,
settings, and with CABS the vectors pruned before it, so that orders with a common prefix share entries. Per tensor it
holds the kept values and their positions, at one bit a weight or one byte a kept weight, whichever is less:

    bits      1 bit a weight
    offsets   1 byte a kept weight: its position within 256 consecutive weights; ``counts`` says how many each 256 keep

A tensor of which nothing is kept is absent; values without positions are a whole tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from cabs_search.calibration import Calibration
from cabs_search.checkpoint import Alignment, Checkpoint, CheckpointWriter, align, checksum_holds
from cabs_search.sparsify import (
    CALIBRATED,
    Kept,
    Mask,
    Survey,
    calibration_of,
    identity,
    keep,
    order_of,
    settings,
    survey_of,
)
from cabs_search.task_vector import task_vector

FORMAT = 1
SPAN = 256
"""Weights that one byte can address."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base and the experts tuned from it, opened and checked against one another."""

    base: Checkpoint
    experts: Mapping[str, Checkpoint]
    alignment: Alignment
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """What experts' layers saw on calibration items, for the rules that need it."""

    @classmethod
    def open(cls, base: str | Path, experts: Mapping[str, str | Path]) -> Family:
        """Open folders. Raises ValueError where one cannot be read or is of another architecture or shape."""
        opened = Checkpoint(base)
        tuned = {name: Checkpoint(path, base=opened) for name, path in experts.items()}
        return cls(base=opened, experts=tuned, alignment=align(opened, tuned))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The experts' content hashes."""
        return {name: expert.fingerprint for name, expert in self.experts.items()}

    def prune(
        self, mask: Mask, tensor: str, survey: Survey, known: Mapping[str, Kept | None] | None = None
    ) -> Iterator[tuple[str, Kept | None]]:
        """What a rule keeps of one tensor, by expert in pruning order; ``known`` vectors are not pruned again."""

        def delta(expert: str) -> Tensor:
            return self.delta(tensor, expert)

        return keep(mask, tensor, delta, tuple(self.experts), self.numel(tensor), known=known, survey=survey)

    def survey(self, mask: Mask, experts: Iterable[str] | None = None) -> Survey:
        """What a rule must know of whole vectors before it prunes them; ``experts``: whose, None for all."""
        sizes = {tensor: self.numel(tensor) for tensor in self.alignment.shared}
        return survey_of(mask, tuple(experts or self.experts), sizes, self.delta, self.calibrations)

    def delta(self, tensor: str, expert: str) -> Tensor:
        """One expert's task vector on one tensor."""
        return task_vector(self.base, self.experts[expert], tensor)

    def numel(self, tensor: str) -> int:
        """A shared tensor's number of weights."""
        return math.prod(self.alignment.shapes[tensor])


class StoredVector:
    """One entry, mapped: tensors are decoded one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        opened: Any = safe_open(path, framework="pt")
        self._file = opened
        self._keys = frozenset(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata()

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.path.stat().st_size

    @property
    def kept_per_tensor(self) -> dict[str, int]:
        """Weights kept of each tensor; tensors of which nothing is kept are absent."""
        found: dict[str, int] = json.loads(self.metadata["kept"])
        return found

    def kept(self, tensor: str, numel: int) -> Kept | None:
        """What is kept of one tensor of ``numel`` weights."""
        if f"{tensor}|values" not in self._keys:
            return None
        values = self._file.get_tensor(f"{tensor}|values")
        if f"{tensor}|bits" in self._keys:
            bits = np.unpackbits(self._file.get_tensor(f"{tensor}|bits").numpy(), count=numel)
            positions = np.flatnonzero(bits)
        elif f"{tensor}|offsets" in self._keys:
            counts = self._file.get_tensor(f"{tensor}|counts").numpy()[: -(-numel // SPAN)]
            offsets = self._file.get_tensor(f"{tensor}|offsets").numpy()[: int(counts.sum())]
            positions = np.repeat(np.arange(len(counts), dtype=np.int64) * SPAN, counts) + offsets
        else:
            return Kept(values[:numel], None)
        return Kept(values[: len(positions)], torch.from_numpy(positions))


class Store:
    """The cache folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root) / f"vectors-v{FORMAT}"
        self._checked: dict[Path, tuple[int, int]] = {}

    def paths(self, family: Family, mask: Mask) -> dict[str, Path]:
        """Where the entry of each expert's vector is, or will be, in pruning order.

        Raises:
            ValueError: the rule needs calibration statistics that the family has not.

        """
        found: dict[str, Path] = {}
        before: list[Any] = []
        for expert in order_of(mask, tuple(family.experts)):
            key = identity(mask, expert) | {
                "base": family.base.fingerprint,
                "expert weights": family.fingerprints[expert],
                "tensors": sorted(family.alignment.shared),
                "dtype": "F32",
                "format": FORMAT,
            }
            if "order" in settings(mask):
                key["before"] = before[:]
                before.append([family.fingerprints[expert], identity(mask, expert)])
            if isinstance(mask, CALIBRATED):
                key["calibration"] = calibration_of(family.calibrations, mask, expert).key
            name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
            found[expert] = self.root / f"{name}.safetensors"
        return found

    def ensure(self, family: Family, mask: Mask, progress: Callable[[int], Any] | None = None) -> dict[str, Path]:
        """Build what is missing or damaged of a rule's entries, in one pass over the tensors.

        Several processes may build the same entry: the last one's equal file stands.

        Args:
            progress: told the number of weights done, as they are done.

        Returns:
            The entry's path by expert, in pruning order.

        """
        paths = self.paths(family, mask)
        missing = {expert: path for expert, path in paths.items() if not self._is_whole(path)}
        if missing:
            survey = family.survey(mask, missing)
            with ExitStack() as stack:
                writers = {e: _EntryWriter(p, family, e, mask) for e, p in missing.items()}
                for writer in writers.values():
                    stack.enter_context(writer)
                whole = self.open({expert: path for expert, path in paths.items() if expert not in missing})
                for tensor in family.alignment.shared:
                    known = {expert: vector.kept(tensor, family.numel(tensor)) for expert, vector in whole.items()}
                    for expert, kept in family.prune(mask, tensor, survey, known):
                        if expert in writers:
                            writers[expert].add_kept(tensor, kept)
                    if progress:
                        progress(family.numel(tensor))
        return paths

    def open(self, paths: Mapping[str, Path]) -> dict[str, StoredVector]:
        """Map entries that ``ensure`` returned."""
        return {expert: StoredVector(path) for expert, path in paths.items()}

    def _is_whole(self, path: Path) -> bool:
        """Whether an entry is there and undamaged; its bytes are read once, and again when the file changes."""
        if not path.exists():
            return False
        now = (path.stat().st_size, path.stat().st_mtime_ns)
        if self._checked.get(path) == now:
            return True
        if checksum_holds(path):
            self._checked[path] = now
            return True
        warnings.warn(f"{path}: the entry is damaged and is built again", stacklevel=3)
        return False


class _EntryWriter(CheckpointWriter):
    """Writes one entry."""

    def __init__(self, path: Path, family: Family, expert: str, mask: Mask) -> None:
        self._numel = {tensor: family.numel(tensor) for tensor in family.alignment.shared}
        self._kept = dict.fromkeys(self._numel, 2**62)  # as large as a count can be, to keep room for it
        names = [f"{t}|{kind}" for t in self._numel for kind in ("values", "offsets", "counts")]
        super().__init__(path, names, {"expert": expert, "mask": mask.name, "kept": json.dumps(self._kept)})
        self._kept = {}

    def add_kept(self, tensor: str, kept: Kept | None) -> None:
        if kept is None:
            return
        self._kept[tensor] = int(torch.count_nonzero(kept.values)) if kept.positions is None else len(kept.values)
        self._metadata["kept"] = json.dumps(self._kept)
        self.add(f"{tensor}|values", _padded(kept.values))
        if kept.positions is None:
            return
        numel, positions = self._numel[tensor], kept.positions.numpy()
        counts = np.bincount(positions // SPAN, minlength=-(-numel // SPAN)).astype(np.int16)
        if numel <= 8 * (len(positions) + 2 * len(counts)):
            bits = np.zeros(numel, dtype=np.uint8)
            bits[positions] = 1
            self.add(f"{tensor}|bits", _padded(torch.from_numpy(np.packbits(bits))))
        else:
            self.add(f"{tensor}|offsets", _padded(torch.from_numpy((positions % SPAN).astype(np.uint8))))
            self.add(f"{tensor}|counts", _padded(torch.from_numpy(counts)))


def _padded(tensor: Tensor) -> Tensor:
    """With zeros at the end, so that its bytes are a multiple of 8 and its neighbours stay aligned."""
    return torch.nn.functional.pad(tensor, (0, -tensor.nbytes % 8 // tensor.element_size()))
