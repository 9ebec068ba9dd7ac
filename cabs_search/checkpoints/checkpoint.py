"""Checkpoints on disk, read lazily.

A checkpoint is a local folder as ``save_pretrained`` writes it: one ``model.safetensors``, shards
beside ``model.safetensors.index.json``, or (older models) the same as ``pytorch_model.bin``.
Files are memory-mapped, and tensors read one at a time.

An expert that was saved as a classifier has names with one prefix more than its bare base
(``bert.encoder…`` against ``encoder…``), or one less. Opened with ``base=``, it uses the base's
names.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cabs_search.checkpoints.json_files import read_config, read_json
from cabs_search.checkpoints.writer import DTYPE_NAMES, as_bytes
from cabs_search.common.formats import first_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of a model's weights, the first that is there counts; whole, or sharded with an index."""
PICKLED = ".bin"
"""Ending of files that torch wrote as pickles; others are read as safetensors."""
MOST_NAME = 500
"""Characters of a tensor's name, at most."""
MOST_FILE_NAME = 255
"""Bytes of a file's name, at most."""
DTYPES = frozenset((*DTYPE_NAMES, *DTYPE_NAMES.values(), torch.int8, "I8", "U16", "U32", "U64"))
"""Data types of tensors, as torch and as safetensors has them; others are refused."""
FLOATS = frozenset(
    part for dtype, name in DTYPE_NAMES.items() if dtype.is_floating_point for part in (dtype, name)
)
CONSTANTS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$|(^|\.)position_ids$")
"""Names of masks, angles and positions, which no training changes."""
OUTPUT_LAYER = re.compile(r"(^|\.)lm_head\.weight$")


class ChangedFileError(ValueError):
    """A file of weights that changed while it was in use."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: changed while it was in use")
        self.path = path


class Checkpoint:
    """One model on disk. Opening it reads headers, not weights."""

    def __init__(
        self,
        folder: str | Path,
        *,
        base: Checkpoint | None = None,
        files: tuple[str, str] = WEIGHTS,
        pickled: bool = False,
    ) -> None:
        """Open the checkpoint in ``folder``.

        Args:
            folder: the folder.
            base: the checkpoint whose names its tensors go by; None: their own.
            files: names of the weights' file, the first that is there counts.
            pickled: whether the weights may be pickled (``.bin``); tensors alone are read of them.

        Raises:
            ValueError: no such folder, no weights in it, or a file that is damaged, or pickled
                where that is not allowed.

        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        self._pickled = pickled
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._states: dict[Path, tuple[int, int] | None] = {}
        """Size and time of the last change of each file when it was opened."""
        self._fingerprint, self._hashing = "", Lock()
        for path in self._weight_files(files):
            for name in self._reader(path).keys():  # noqa: SIM118 (a reader is no mapping)
                self._check_tensor(path, name)
                if name in self._files:
                    raise ValueError(f"{path}: holds {name}, which {self._files[name]} has, too")
                self._files[name] = path
        if not self._files:
            raise ValueError(f"{self.folder}: holds no tensors")
        raw = {_modern(name): name for name in self._files}
        self._in_file = raw if base is None else renamed(raw, base)
        if len(self._in_file) < len(self._files):
            twice = set(self._files) - set(self._in_file.values())
            raise ValueError(f"{self.folder}: holds {min(twice)} twice, by another name as well")

    def _weight_files(self, files: tuple[str, str]) -> list[Path]:
        for single in files:
            index = self.folder / f"{single}.index.json"
            if (self.folder / single).is_file():
                return [self.folder / single]
            if index.is_file():
                file_of = read_json(index).get("weight_map")
                if not file_of or not isinstance(file_of, dict):
                    raise ValueError(f"{index}: weight_map: names no files")
                shards = sorted(set(map(str, file_of.values())))
                kind = Path(single).suffix
                for shard in shards:
                    is_short = len(shard.encode(errors="surrogatepass")) <= MOST_FILE_NAME
                    if Path(shard).name != shard or Path(shard).suffix != kind or not is_short:
                        raise ValueError(
                            f"{index}: weight_map: must name files of its own folder, but got"
                            f" {shard[:MOST_NAME]!r}; they end in {kind}"
                        )
                return [self.folder / shard for shard in shards]
        raise ValueError(f"{self.folder}: holds neither {' nor '.join(files)}, whole or sharded")

    def _check_tensor(self, path: Path, name: str) -> None:
        """Raise ValueError if a tensor's name or data type cannot be merged."""
        if len(name) > MOST_NAME or not name.isprintable():
            raise ValueError(
                f"{path}: names must be of at most {MOST_NAME} printable characters, but got"
                f" {name[:MOST_NAME]!r}"
            )
        if (dtype := self._dtype(path, name)) not in DTYPES:
            raise ValueError(
                f"{path}: weights must be of 16 bits or more, but {name} is {dtype}: what such"
                " weights are scaled by is not known here"
            )

    def _dtype(self, path: Path, name: str) -> Any:
        """Return a tensor's data type, as its file has it."""
        reader = self._reader(path)
        return (
            reader[name].dtype if isinstance(reader, dict) else reader.get_slice(name).get_dtype()
        )

    def _reader(self, path: Path) -> Any:
        if path not in self._open:
            if not path.is_file():  # opening another thing, such as a pipe, might never return
                raise ValueError(f"{path}: no such file")
            self._states[path] = _state(path)
            if path.suffix == PICKLED:
                if not self._pickled:
                    raise ValueError(
                        f"{path}: is a pickled file, which is read only of models that `pickled`"
                        " names"
                    )
                self._open[path] = _unpickled(path)
            else:
                try:
                    self._open[path] = safe_open(path, framework="pt")
                except (OSError, SafetensorError) as error:
                    raise ValueError(f"{path}: cannot be read: {first_line(error)}") from error
        return self._open[path]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of ``config.json``; empty if there is no such file."""
        path = self.folder / "config.json"
        return read_config(path, len(self._files)) if path.is_file() else {}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._in_file)

    @property
    def is_pickled(self) -> bool:
        """True if the weights are in pickled files."""
        return any(path.suffix == PICKLED for path in self._open)

    def model_name(self, name: str) -> str:
        """Return this tensor's name in the loaded model's ``state_dict``."""
        return _modern(self._in_file[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, read from the header."""
        raw = self._in_file[name]
        reader = self._reader(self._files[raw])
        return tuple(
            reader[raw].shape if isinstance(reader, dict) else reader.get_slice(raw).get_shape()
        )

    def read(self, name: str) -> Tensor:
        """Read one tensor as stored; it is mapped, not copied.

        Raises:
            ChangedFileError: its file has changed since it was opened.

        """
        raw = self._in_file[name]
        self._check_current(self._files[raw])
        reader = self._reader(self._files[raw])
        tensor: Tensor = reader[raw] if isinstance(reader, dict) else reader.get_tensor(raw)
        return tensor

    def check_current(self) -> None:
        """Check that all files are as they were opened: to read one that was cut ends the process.

        Raises:
            ChangedFileError: one is not.

        """
        for path in self._states:
            self._check_current(path)

    def _check_current(self, path: Path) -> None:
        if self._states[path] != _state(path):
            raise ChangedFileError(path)

    def is_float(self, name: str) -> bool:
        """Tell whether a tensor is floating-point."""
        raw = self._in_file[name]
        return self._dtype(self._files[raw], raw) in FLOATS

    @cached_property
    def constants(self) -> frozenset[str]:
        """Tensors that models compute themselves and some files hold all the same."""
        return frozenset(name for name in self._in_file if CONSTANTS.search(name))

    @cached_property
    def repeated(self) -> frozenset[str]:
        """Output layers that repeat the word embeddings: one tensor, in the file twice.

        Where ``tie_word_embeddings`` is left out, as many files have it, the values tell.
        """
        if self.config.get("tie_word_embeddings") is False:
            return frozenset()
        outputs = [name for name in self._in_file if OUTPUT_LAYER.search(name)]
        return frozenset(name for name in outputs if self._has_equal(name))

    @property
    def is_tied(self) -> bool:
        """True if the output layer of a language model is its word embeddings."""
        said = self.config.get("tie_word_embeddings")
        if said is not None:
            return bool(said)
        return bool(self.repeated) or not any(map(OUTPUT_LAYER.search, self._in_file))

    def _has_equal(self, name: str) -> bool:
        """Tell whether another tensor has the same shape and values."""
        shape = self.shape(name)
        others = [other for other in self.names if other != name and self.shape(other) == shape]
        return any(torch.equal(self.read(name), self.read(other)) for other in others)

    @property
    def fingerprint(self) -> str:
        """Hash of names, dtypes, shapes and bytes; the same for one file and for shards.

        Computed once; several checkpoints can be hashed at the same time.

        Raises:
            ValueError: a weight is not finite.

        """
        with self._hashing:
            self._fingerprint = self._fingerprint or self._hash()
        return self._fingerprint

    def _hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for raw, name in sorted((raw, name) for name, raw in self._in_file.items()):
            tensor = self.read(name).contiguous()
            if not all_finite(tensor):
                raise ValueError(f"{self.folder}: every weight must be finite, but {name} is not")
            digest.update(f"{raw} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(as_bytes(tensor))
        return digest.hexdigest()


def _state(path: Path) -> tuple[int, int] | None:
    """Return a file's size and the time of its last change; None if it is not to be reached.

    No inode: on some network file systems that of a file changes by itself.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a pickled file; nothing else is made of it, and no code is run.

    Raises:
        ValueError: it holds something else, or tensors that are larger than the file says.

    """
    try:
        # Files from before torch 1.6 are not zip archives and cannot be mapped.
        tensors = torch.load(
            path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True
        )
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path}: cannot be read: {first_line(error)}") from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: must hold tensors by name, but got {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path}: must hold tensors by name, but {str(name)[:MOST_NAME]!r} is"
                f" {type(tensor).__name__}"
            )
        # strides of 0 make a tensor of any size of a few bytes
        if (
            tensor.layout != torch.strided
            or tensor.is_meta
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ValueError(
                f"{path}: every weight of a tensor must be in the file, but not those of"
                f" {name[:MOST_NAME]!r}"
            )
    return tensors


def all_finite(tensor: Tensor) -> bool:
    """Tell whether all weights are finite.

    A finite sum proves it, at a fortieth of the cost of looking at each in half precision.
    """
    total = tensor.sum(dtype=torch.float32) if tensor.is_floating_point() else tensor.sum()
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _modern(name: str) -> str:
    """Return the name that transformers gives a tensor of an old checkpoint when it loads it."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def renamed(raw: Mapping[str, str], base: Checkpoint) -> dict[str, str]:
    """Add or remove the one prefix that makes most names equal to the base's.

    Args:
        raw: name in the file by name.
        base: the checkpoint whose names to use.

    """
    wanted = set(base.names)
    shorter = [{name.removeprefix(p): file for name, file in raw.items()} for p in _prefixes(raw)]
    longer = [{p + name: file for name, file in raw.items()} for p in _prefixes(wanted)]
    return max([dict(raw), *shorter, *longer], key=lambda names: len(wanted.intersection(names)))


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the first components of names, each with its dot."""
    return sorted({name.split(".", 1)[0] + "." for name in names})
