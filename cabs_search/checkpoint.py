"""Checkpoints on disk, read lazily and written as a stream.

A checkpoint is a local folder as ``save_pretrained`` leaves it: one ``model.safetensors``, shards beside
``model.safetensors.index.json``, or (older models) the same as ``pytorch_model.bin``. Tensors are mapped, and read
one at a time. ``align`` says which tensors a base and its experts share and which are an expert's own head.

Tensors go by the base's names. An expert, saved from the trunk inside a classifier, has a prefix more
(``bert.encoder…`` against ``encoder…``) or less; opened with ``base=`` it answers to the base's names.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

TRUNK_FIELDS = (
    *("model_type", "vocab_size"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("n_embd", "n_layer", "n_head"),  # GPT-2
    *("dim", "n_layers", "n_heads"),  # DistilBERT
)
"""What a base and its experts must have alike in ``config.json``."""
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that are written, by their name in a safetensors header."""


class Checkpoint:
    """One model on disk; opening it reads headers, never weights."""

    def __init__(self, folder: str | Path, *, base: Checkpoint | None = None) -> None:
        """Open the checkpoint in ``folder``; with ``base``, its tensors go by the base's names.

        Raises:
            ValueError: no such folder, no weights in it, or a damaged file.

        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for path in self._weight_files():
            self._files.update(dict.fromkeys(self._reader(path).keys(), path))
        raw = {_modern(name): name for name in self._files}
        self._in_file = raw if base is None else _renamed(raw, base)

    def _weight_files(self) -> list[Path]:
        for single in ("model.safetensors", "pytorch_model.bin"):
            index = self.folder / f"{single}.index.json"
            if (self.folder / single).is_file():
                return [self.folder / single]
            if index.is_file():
                files = {self.folder / f for f in _json(index).get("weight_map", {}).values()}
                if not files:
                    raise ValueError(f"{index}: names no files")
                return sorted(files)
        raise ValueError(f"{self.folder}: holds neither model.safetensors nor pytorch_model.bin, whole or sharded")

    def _reader(self, path: Path) -> Any:
        if path not in self._open:
            try:
                if path.suffix == ".bin":
                    self._open[path] = torch.load(
                        path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True
                    )  # files from before torch 1.6 are no zip, and cannot be mapped
                else:
                    self._open[path] = safe_open(path, framework="pt")
            except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
                raise ValueError(f"{path}: cannot be read: {first_line(error)}") from error
        return self._open[path]

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``, empty where there is none."""
        path = self.folder / "config.json"
        return _json(path) if path.is_file() else {}

    @property
    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return sorted(self._in_file)

    def model_name(self, name: str) -> str:
        """What the loaded model's ``state_dict`` calls this tensor."""
        return _modern(self._in_file[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        raw = self._in_file[name]
        reader = self._reader(self._files[raw])
        return tuple(reader[raw].shape if isinstance(reader, dict) else reader.get_slice(raw).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor, as stored. Raises ValueError where the file is damaged."""
        raw = self._in_file[name]
        reader = self._reader(self._files[raw])
        tensor: Tensor = reader[raw] if isinstance(reader, dict) else reader.get_tensor(raw)
        return tensor

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, dtypes, shapes and bytes: equal for equal weights, wherever and however sharded."""
        digest = hashlib.blake2b(digest_size=16)
        for name, raw in sorted((raw, name) for name, raw in self._in_file.items()):
            tensor = self.read(raw).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(as_bytes(tensor))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What a base and its experts have in common."""

    shared: tuple[str, ...]
    """Floating tensors that the base and every expert have: what is merged."""
    heads: Mapping[str, tuple[str, ...]]
    """By expert, the floating tensors that are its own (a classifier): never merged."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the shared tensors."""

    @property
    def weights(self) -> int:
        """Number of shared weights."""
        return sum(_numel(shape) for shape in self.shapes.values())


def align(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> Alignment:
    """Find the shared tensors and the heads.

    Raises:
        ValueError: an expert is of another architecture than the base, or a tensor of another shape.

    """
    for name, expert in experts.items():
        _check_config(base, name, expert)
    in_all = set(base.names).intersection(*(e.names for e in experts.values()))
    floating = {t for t in in_all if all(c.read(t).is_floating_point() for c in (base, *experts.values()))}
    for name, expert in experts.items():
        for tensor in sorted(floating):
            if base.shape(tensor) != expert.shape(tensor):
                raise ValueError(
                    f"experts.{name}: every shared tensor must have the base's shape, but {tensor} is "
                    f"{expert.shape(tensor)} against {base.shape(tensor)}"
                )
    if not floating or 2 * sum(_numel(base.shape(t)) for t in floating) < _total(base):
        raise ValueError(
            f"experts must share most of the base's weights, but {len(floating)} of its {len(base.names)} tensors "
            f"are in every expert: {', '.join(f'{n}={e.folder}' for n, e in experts.items())}"
        )
    heads = {
        name: tuple(t for t in expert.names if t not in floating and expert.read(t).is_floating_point())
        for name, expert in experts.items()
    }
    shared = tuple(sorted(floating))
    return Alignment(shared=shared, heads=heads, shapes={t: base.shape(t) for t in shared})


def _check_config(base: Checkpoint, name: str, expert: Checkpoint) -> None:
    for field in TRUNK_FIELDS:
        ours, theirs = base.config.get(field), expert.config.get(field)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"experts.{name}: an expert must have the base's architecture, but {field} is {theirs!r} against "
                f"{ours!r} in {base.folder}"
            )


class CheckpointWriter(AbstractContextManager["CheckpointWriter"]):
    """Writes one safetensors file, tensor after tensor, in constant memory.

    The file appears under its name only when all of it is on disk; before that, and after an error, nothing is
    there. ``metadata["crc32"]`` holds a checksum of the data.
    """

    def __init__(self, path: Path, names: Iterable[str], metadata: Mapping[str, str] | None = None) -> None:
        """Args:
        path: the file to make; its folder is made too.
        names: every name that may be added, so that the header's room can be kept.
        metadata: text to store in the header.
        """
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        self._metadata = dict(metadata or {})
        self._header: dict[str, Any] = {}
        self._checksum = 0
        self._end = 0
        room = len(json.dumps(self._metadata)) + sum(len(json.dumps(n)) + 256 for n in names) + 256
        self._room = (room + 7) // 8 * 8

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.temporary.open("wb")
        self._file.seek(8 + self._room)
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor. Its bytes should be a multiple of 8, so that its neighbours stay aligned."""
        data = as_bytes(tensor.detach().cpu().contiguous())
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)
        start, self._end = self._end, self._end + data.nbytes
        self._header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self._end],
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            metadata = self._metadata | {"crc32": f"{self._checksum:08x}"}
            header = json.dumps({"__metadata__": metadata} | self._header).encode()
            assert len(header) <= self._room, "more was added than was announced"
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink()


def checksum_holds(path: Path) -> bool:
    """Whether a file that CheckpointWriter made is whole and unchanged."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            checksum = 0
            while chunk := file.read(1 << 22):
                checksum = zlib.crc32(chunk, checksum)
        return bool(header["__metadata__"]["crc32"] == f"{checksum:08x}")
    except (OSError, ValueError, KeyError, OverflowError, MemoryError):
        return False


def as_bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's bytes, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _modern(name: str) -> str:
    """Names that transformers renames when it loads old checkpoints."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _renamed(raw: Mapping[str, str], base: Checkpoint) -> dict[str, str]:
    """``raw`` (name -> name in the file) under the naming that has most in common with the base's names."""
    theirs = set(base.names)
    less = [{name.removeprefix(first): file for name, file in raw.items()} for first in _firsts(raw)]
    more = [{first + name: file for name, file in raw.items()} for first in _firsts(theirs)]
    return max([dict(raw), *less, *more], key=lambda way: len(theirs.intersection(way)))


def _firsts(names: Iterable[str]) -> list[str]:
    """The first components of names, each with its dot."""
    return sorted({name.split(".", 1)[0] + "." for name in names})


def _total(checkpoint: Checkpoint) -> int:
    return sum(_numel(checkpoint.shape(t)) for t in checkpoint.names)


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {first_line(error)}") from error
    return found


def first_line(error: BaseException) -> str:
    """What an error says, without its further lines; its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
