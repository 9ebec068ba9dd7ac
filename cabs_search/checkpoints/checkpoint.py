"""Checkpoints on disk, read lazily and written as a stream.

A checkpoint is a local folder as ``save_pretrained`` leaves it: one ``model.safetensors``, shards
beside ``model.safetensors.index.json``, or (older models) the same as ``pytorch_model.bin``.
Tensors are mapped, and read one at a time. ``align`` says which tensors a base and its experts
share and which are an expert's own head.

Tensors go by the base's names. An expert, saved from the trunk inside a classifier, has a prefix
more (``bert.encoder…`` against ``encoder…``) or less; opened with ``base=`` it answers to the
base's names.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cabs_search.checkpoints.writer import as_bytes
from cabs_search.common.formats import first_line


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
        raise ValueError(
            f"{self.folder}: holds neither model.safetensors nor pytorch_model.bin, whole or"
            " sharded"
        )

    def _reader(self, path: Path) -> Any:
        if path not in self._open:
            try:
                if path.suffix == ".bin":
                    self._open[path] = torch.load(
                        path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True
                    )  # files from before torch 1.6 are no zip, and cannot be mapped
                else:
                    self._open[path] = safe_open(path, framework="pt")
            except (
                OSError,
                EOFError,
                RuntimeError,
                SafetensorError,
                pickle.UnpicklingError,
            ) as error:
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
        return tuple(
            reader[raw].shape if isinstance(reader, dict) else reader.get_slice(raw).get_shape()
        )

    def read(self, name: str) -> Tensor:
        """One tensor, as stored. Raises ValueError where the file is damaged."""
        raw = self._in_file[name]
        reader = self._reader(self._files[raw])
        tensor: Tensor = reader[raw] if isinstance(reader, dict) else reader.get_tensor(raw)
        return tensor

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, dtypes, shapes and bytes: equal for equal weights, wherever and however
        sharded.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, raw in sorted((raw, name) for name, raw in self._in_file.items()):
            tensor = self.read(raw).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(as_bytes(tensor))
        return digest.hexdigest()


def _modern(name: str) -> str:
    """Names that transformers renames when it loads old checkpoints."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _renamed(raw: Mapping[str, str], base: Checkpoint) -> dict[str, str]:
    """``raw`` (name -> name in the file) under the naming that has most in common with the base's
    names.
    """
    theirs = set(base.names)
    less = [
        {name.removeprefix(first): file for name, file in raw.items()} for first in _firsts(raw)
    ]
    more = [{first + name: file for name, file in raw.items()} for first in _firsts(theirs)]
    return max([dict(raw), *less, *more], key=lambda way: len(theirs.intersection(way)))


def _firsts(names: Iterable[str]) -> list[str]:
    """The first components of names, each with its dot."""
    return sorted({name.split(".", 1)[0] + "." for name in names})


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {first_line(error)}") from error
    return found
