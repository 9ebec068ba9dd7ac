"""The cache of pruned task vectors: content-addressed files, written once, mapped by all workers.

An entry is one safetensors file named by the hash of everything that its content depends on: base,
expert, mask rule and settings; with CABS also the vectors pruned before it (orders with a common
prefix share entries), with rules that compare vectors, as TIES does, or prune them together, all of
these. It holds, tensor
by tensor, the kept values and their positions as ``packed.Packed`` does; a tensor of which nothing
is kept is absent.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cabs_search.checkpoints.writer import CheckpointWriter, checksum_holds
from cabs_search.common.formats import digest
from cabs_search.merging.family import Family
from cabs_search.merging.masks.prune import check_calibrated
from cabs_search.merging.masks.rule import JointRule, MaskRule
from cabs_search.merging.masks.rules import identity, order_of, settings
from cabs_search.merging.method import Method
from cabs_search.merging.packed import SPAN, Packed
from cabs_search.merging.sparse import Kept

FORMAT = 2
"""Version of the entries' format, a part of their keys."""
FIELDS = ("values", "bits", "offsets", "counts")
"""Parts stored of a tensor, in the order they are written."""
Progress = Callable[[int], Any]
"""A function that is called with the number of weights done since its last call."""
Piece = tuple[str, str, Kept | None]
"""A tensor, an expert, and what its vector keeps of the tensor."""


class StoredVector:
    """One entry, mapped; tensors are decoded one at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self._opened = path, _state(path)
        opened: Any = safe_open(path, framework="pt")
        self._file = opened
        self._keys = frozenset(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata()

    @property
    def is_current(self) -> bool:
        """True while the file is as it was opened; to read one that was cut ends the process."""
        try:
            return self._opened == _state(self.path)
        except FileNotFoundError:
            return False

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.path.stat().st_size

    @cached_property
    def kept_per_tensor(self) -> dict[str, int]:
        """Number of weights kept by tensor; tensors of which nothing is kept are absent."""
        counts: dict[str, int] = json.loads(self.metadata["kept"])
        return counts

    def packed(self, tensor: str, numel: int) -> Packed | None:
        """Map what is kept of one tensor of ``numel`` weights; nothing is copied."""
        keys = {field: f"{tensor}|{field}" for field in FIELDS}
        parts = {f: self._file.get_tensor(key) for f, key in keys.items() if key in self._keys}
        if not parts:
            return None
        lengths = {"values": self.kept_per_tensor[tensor] if len(parts) > 1 else numel}
        lengths |= {"offsets": lengths["values"], "counts": -(-numel // SPAN)}
        return Packed(numel=numel, **{field: t[: lengths.get(field)] for field, t in parts.items()})

    def kept(self, tensor: str, numel: int) -> Kept | None:
        """Unpack what is kept of one tensor of ``numel`` weights."""
        packed = self.packed(tensor, numel)
        return None if packed is None else packed.kept()


class VectorCache:
    """The cache folder.

    Args:
        root: the folder.
        fetch: called with the path of an entry that is missing or damaged; may put it there.

    """

    def __init__(self, root: str | Path, fetch: Callable[[Path], object] | None = None) -> None:
        self.root = Path(root) / f"vectors-v{FORMAT}"
        self._fetch = fetch
        self._checked: dict[Path, tuple[int, ...]] = {}

    def paths(self, family: Family, method: Method) -> dict[str, Path]:
        """Return the path of each expert's entry, present or not, in pruning order.

        Raises:
            ValueError: the rule needs calibration statistics that the family has not.

        """
        pruned = self._pruned_paths(family, method.mask)
        if method.is_sum:
            return pruned
        stems = [path.stem for path in pruned.values()]
        key = {"combine": method.combine.name, "of": stems}
        found = {}
        for place, (expert, stem) in enumerate(zip(pruned, stems, strict=True)):
            # of two experts with equal weights, each has a part of its own
            again = {"place": place} if stem in stems[:place] else {}
            found[expert] = self._path(key | {"left of": stem} | again)
        return found

    def _pruned_paths(self, family: Family, mask: MaskRule) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        fingerprints = family.fingerprints  # before the base's, which is hashed at the same time
        rows_of, calibrations = family.alignment.common_rows, family.calibrations_for(mask)
        order = order_of(mask, tuple(family.experts))
        pruned = [[fingerprints[e], identity(mask, e), *rows_of.get(e, ())[1:]] for e in order]
        for place, expert in enumerate(order):
            key = identity(mask, expert) | {
                "base": family.base.fingerprint,
                "expert weights": fingerprints[expert],
                "tensors": sorted(family.alignment.shared),
                "dtype": "F32",
            }
            rows = rows_of.get(expert, ())[1:]
            if rows:
                key["rows of tokens"] = rows
            if "order" in settings(mask):
                key["before"] = pruned[:place]
            if isinstance(mask, JointRule):
                key |= {"together": pruned, "place": place}
            used = check_calibrated(mask, expert, calibrations, fingerprints)
            if used:
                keys = [one.key for one in used]
                key["calibration"] = keys if mask.sees_all else keys[0]
            if mask.sees_all:
                key["among"] = [[own, *rows_of.get(e, ())[1:]] for e, own in fingerprints.items()]
            paths[expert] = self._path(key)
        return paths

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps({**key, "format": FORMAT}, sort_keys=True)
        return self.root / f"{digest(text, 16)}.safetensors"

    def ensure(
        self, family: Family, method: Method, progress: Progress | None = None
    ) -> dict[str, Path]:
        """Build the missing or damaged entries of a method's vectors, tensor by tensor.

        Several processes may build the same entry: the last one's equal file stands.

        Returns:
            The entry's path by expert, in pruning order.

        """
        paths = self.paths(family, method)
        if missing := self._missing(paths):
            pruned = self._pruned_paths(family, method.mask)
            if lacking := self._missing(pruned):
                self._write(
                    family, lacking, self._prune(family, method.mask, pruned, lacking, progress)
                )
            if not method.is_sum:
                self._write(family, missing, self._combine(family, method, pruned))
        return paths

    def _missing(self, paths: Mapping[str, Path]) -> dict[str, Path]:
        missing = {expert: path for expert, path in paths.items() if not self._is_whole(path)}
        if self._fetch is None:
            return missing
        for path in missing.values():
            self._fetch(path)
        return {expert: path for expert, path in missing.items() if not self._is_whole(path)}

    def _prune(
        self,
        family: Family,
        mask: MaskRule,
        paths: Mapping[str, Path],
        missing: Mapping[str, Path],
        progress: Progress | None,
    ) -> Iterator[Piece]:
        """Yield what each vector keeps of each tensor; read from the cache what it has."""
        survey = family.survey(mask, missing)
        stored = self.open(
            {expert: path for expert, path in paths.items() if expert not in missing}
        )
        for tensor in family.alignment.shared:
            numel = family.numel(tensor)
            pruned = {expert: vector.kept(tensor, numel) for expert, vector in stored.items()}
            for expert, kept in family.prune(mask, tensor, survey, pruned):
                yield tensor, expert, kept
            if progress:
                progress(numel)

    def _combine(
        self, family: Family, method: Method, paths: Mapping[str, Path]
    ) -> Iterator[Piece]:
        """Yield what the combine rule leaves of pruned vectors."""
        vectors = self.open(paths)
        for tensor in family.alignment.shared:
            numel, shape = family.numel(tensor), family.alignment.shapes[tensor]
            kept = [vector.kept(tensor, numel) for vector in vectors.values()]
            for expert, left in zip(vectors, method.combine.combine(kept, shape), strict=True):
                yield tensor, expert, left

    def _write(self, family: Family, paths: Mapping[str, Path], pieces: Iterator[Piece]) -> None:
        """Write entries from their pieces; skip the pieces of other experts."""
        try:
            with ExitStack() as stack:
                writers = {e: _EntryWriter(path, family, e) for e, path in paths.items()}
                for writer in writers.values():
                    stack.enter_context(writer)
                for tensor, expert, kept in pieces:
                    if expert in writers:
                        writers[expert].add_kept(tensor, kept)
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, str(self.root)) from error
        for path in paths.values():
            self._checked[path] = _state(path)

    def open(self, paths: Mapping[str, Path]) -> dict[str, StoredVector]:
        """Map entries that ``ensure`` returned."""
        return {expert: StoredVector(path) for expert, path in paths.items()}

    def _is_whole(self, path: Path) -> bool:
        """Tell whether an entry is there and undamaged; its bytes are read again only if it
        changes.
        """
        try:
            if self._checked.get(path) == _state(path):
                return True
            if checksum_holds(path):
                self._checked[path] = _state(path)
                return True
        except FileNotFoundError:
            return False
        warnings.warn(f"{path}: the entry is damaged and is built again", stacklevel=3)
        return False


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class _EntryWriter(CheckpointWriter):
    """Writer of one entry."""

    def __init__(self, path: Path, family: Family, expert: str) -> None:
        # The header is as long as the largest counts that are possible need.
        most = {tensor: family.numel(tensor) for tensor in family.alignment.shared}
        names = [f"{tensor}|{field}" for tensor in most for field in FIELDS]
        super().__init__(path, names, {"expert": expert, "kept": json.dumps(most)})
        self._counts: dict[str, int] = {}

    def add_kept(self, tensor: str, kept: Kept | None) -> None:
        """Append what is kept of one tensor; nothing is written for None."""
        if kept is None:
            return
        is_dense = kept.mask is None
        count = int(torch.count_nonzero(kept.values)) if is_dense else len(kept.values)
        self._counts[tensor] = count
        packed = Packed.of(kept)
        for field in FIELDS:
            if (part := getattr(packed, field)) is not None:
                self.add(f"{tensor}|{field}", _padded(part))

    def __exit__(self, *error: Any) -> None:
        self._metadata["kept"] = json.dumps(self._counts)
        super().__exit__(*error)


def _padded(tensor: Tensor) -> Tensor:
    """Add zeros at the end, so that the bytes are a multiple of 8 and neighbours stay aligned."""
    lacking = -tensor.nbytes % 8
    if not lacking:
        return tensor
    return torch.nn.functional.pad(tensor, (0, lacking // tensor.element_size()))
