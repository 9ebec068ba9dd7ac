"""The cache of pruned task vectors: content-addressed files, written once, mapped by every worker
of a node.

An entry is one safetensors file named by the hash of everything that its content depends on: base,
expert, mask rule, settings, with CABS the vectors pruned before it (so that orders with a common
prefix share entries), with TIES the vectors that signs are elected among. Per tensor it holds the
kept values and their positions as ``packed.Packed`` does; a tensor of which nothing is kept is
absent.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cabs_search.checkpoints.writer import CheckpointWriter, checksum_holds
from cabs_search.merging.combine.ties import combined
from cabs_search.merging.family import Family
from cabs_search.merging.masks.calibrated import calibration_of
from cabs_search.merging.masks.rules import CALIBRATED, Mask, identity, order_of, settings
from cabs_search.merging.packed import SPAN, Packed
from cabs_search.merging.recipe import SUM, Method
from cabs_search.merging.sparse import Kept

FORMAT = 2
FIELDS = ("values", "bits", "offsets", "counts")
"""What is stored of a tensor, in the order it is written."""


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

    @cached_property
    def kept_per_tensor(self) -> dict[str, int]:
        """Weights kept of each tensor; tensors of which nothing is kept are absent."""
        found: dict[str, int] = json.loads(self.metadata["kept"])
        return found

    def packed(self, tensor: str, numel: int) -> Packed | None:
        """What is kept of one tensor of ``numel`` weights; mapped, not copied."""
        found = {
            f: self._file.get_tensor(name)
            for f in FIELDS
            if (name := f"{tensor}|{f}") in self._keys
        }
        if not found:
            return None
        lengths = {"values": self.kept_per_tensor[tensor] if len(found) > 1 else numel}
        lengths |= {"offsets": lengths["values"], "counts": -(-numel // SPAN)}
        return Packed(numel=numel, **{field: t[: lengths.get(field)] for field, t in found.items()})

    def kept(self, tensor: str, numel: int) -> Kept | None:
        """What is kept of one tensor of ``numel`` weights, unpacked."""
        packed = self.packed(tensor, numel)
        return None if packed is None else packed.kept()


class VectorCache:
    """The cache folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root) / f"vectors-v{FORMAT}"
        self._checked: dict[Path, tuple[int, int]] = {}

    def paths(self, family: Family, method: Method) -> dict[str, Path]:
        """Where the entry of each expert's vector is, or will be, in pruning order.

        Raises:
            ValueError: the rule needs calibration statistics that the family has not.

        """
        pruned = self._pruned(family, method.mask)
        if method.combine == SUM:
            return pruned
        key = {"combine": method.combine.name, "of": [path.stem for path in pruned.values()]}
        return {expert: self._path(key | {"left of": path.stem}) for expert, path in pruned.items()}

    def _pruned(self, family: Family, mask: Mask) -> dict[str, Path]:
        found: dict[str, Path] = {}
        before: list[Any] = []
        for expert in order_of(mask, tuple(family.experts)):
            key = identity(mask, expert) | {
                "base": family.base.fingerprint,
                "expert weights": family.fingerprints[expert],
                "tensors": sorted(family.alignment.shared),
                "dtype": "F32",
            }
            if "order" in settings(mask):
                key["before"] = before[:]
                before.append([family.fingerprints[expert], identity(mask, expert)])
            if isinstance(mask, CALIBRATED):
                key["calibration"] = calibration_of(family.calibrations, mask, expert).key
            found[expert] = self._path(key)
        return found

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps({**key, "format": FORMAT}, sort_keys=True)
        return (
            self.root / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.safetensors"
        )

    def ensure(
        self, family: Family, method: Method, progress: Callable[[int], Any] | None = None
    ) -> dict[str, Path]:
        """Build what is missing or damaged of a method's vectors, tensor by tensor.

        Several processes may build the same entry: the last one's equal file stands.

        Args:
            progress: told the number of weights done, as they are done.

        Returns:
            The entry's path by expert, in pruning order.

        """
        paths = self.paths(family, method)
        if missing := self._missing(paths):
            if method.combine == SUM:
                self._prune(family, method.mask, paths, missing, progress)
            else:
                self._combine(family, method, missing, progress)
        return paths

    def _missing(self, paths: Mapping[str, Path]) -> dict[str, Path]:
        return {expert: path for expert, path in paths.items() if not self._is_whole(path)}

    def _prune(
        self,
        family: Family,
        mask: Mask,
        paths: Mapping[str, Path],
        missing: Mapping[str, Path],
        progress: Callable[[int], Any] | None,
    ) -> None:
        survey = family.survey(mask, missing)
        whole = self.open({expert: path for expert, path in paths.items() if expert not in missing})

        def pruned(tensor: str) -> Iterable[tuple[str, Kept | None]]:
            known = {
                expert: vector.kept(tensor, family.numel(tensor))
                for expert, vector in whole.items()
            }
            return family.prune(mask, tensor, survey, known)

        self._build(family, missing, pruned, progress)

    def _combine(
        self,
        family: Family,
        method: Method,
        missing: Mapping[str, Path],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Build what is left of pruned vectors where they are put together."""
        paths = self._pruned(family, method.mask)
        if lacking := self._missing(paths):
            self._prune(family, method.mask, paths, lacking, progress)
        vectors = self.open(paths)

        def left(tensor: str) -> Iterable[tuple[str, Kept | None]]:
            kept = [vector.kept(tensor, family.numel(tensor)) for vector in vectors.values()]
            return zip(vectors, combined(method.combine, kept, family.numel(tensor)), strict=True)

        self._build(family, missing, left, None)

    def _build(
        self,
        family: Family,
        missing: Mapping[str, Path],
        kept_of: Callable[[str], Iterable[tuple[str, Kept | None]]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        with ExitStack() as stack:
            writers = {e: _EntryWriter(path, family, e) for e, path in missing.items()}
            for writer in writers.values():
                stack.enter_context(writer)
            for tensor in family.alignment.shared:
                for expert, kept in kept_of(tensor):
                    if expert in writers:
                        writers[expert].add_kept(tensor, kept)
                if progress:
                    progress(family.numel(tensor))
        for path in missing.values():
            self._know(path)

    def open(self, paths: Mapping[str, Path]) -> dict[str, StoredVector]:
        """Map entries that ``ensure`` returned."""
        return {expert: StoredVector(path) for expert, path in paths.items()}

    def _is_whole(self, path: Path) -> bool:
        """Whether an entry is there and undamaged; its bytes are read once, and again when the file
        changes.
        """
        try:
            if self._checked.get(path) == _state(path):
                return True
            if checksum_holds(path):
                self._know(path)
                return True
        except FileNotFoundError:
            return False
        warnings.warn(f"{path}: the entry is damaged and is built again", stacklevel=3)
        return False

    def _know(self, path: Path) -> None:
        """Note that a file is whole."""
        self._checked[path] = _state(path)


def _state(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


class _EntryWriter(CheckpointWriter):
    """Writes one entry."""

    def __init__(self, path: Path, family: Family, expert: str) -> None:
        self._kept = {
            tensor: family.numel(tensor) for tensor in family.alignment.shared
        }  # room for the largest counts
        names = [f"{tensor}|{name}" for tensor in self._kept for name in FIELDS]
        super().__init__(path, names, {"expert": expert, "kept": json.dumps(self._kept)})
        self._kept = {}

    def add_kept(self, tensor: str, kept: Kept | None) -> None:
        if kept is None:
            return
        self._kept[tensor] = (
            int(torch.count_nonzero(kept.values)) if kept.mask is None else len(kept.values)
        )
        packed = Packed.of(kept)
        for name in FIELDS:
            if (part := getattr(packed, name)) is not None:
                self.add(f"{tensor}|{name}", _padded(part))

    def __exit__(self, *error: Any) -> None:
        self._metadata["kept"] = json.dumps(self._kept)
        super().__exit__(*error)


def _padded(tensor: Tensor) -> Tensor:
    """With zeros at the end, so that its bytes are a multiple of 8 and its neighbours stay
    aligned.
    """
    lacking = -tensor.nbytes % 8
    return (
        torch.nn.functional.pad(tensor, (0, lacking // tensor.element_size()))
        if lacking
        else tensor
    )
