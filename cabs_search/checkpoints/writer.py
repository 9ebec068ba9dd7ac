"""Safetensors files written as a stream, and their checksums."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

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
"""Names of dtypes in a safetensors header."""


class CheckpointWriter(AbstractContextManager["CheckpointWriter"]):
    """Writer of one safetensors file, tensor after tensor, in constant memory.

    The file appears under its name only when all of it is on disk; after an error it does not
    appear. ``metadata["crc32"]`` holds a checksum of the data.
    """

    def __init__(
        self, path: Path, names: Iterable[str], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Prepare to write; the file is opened on entering the context.

        Args:
            path: the file to write; its folder is made if needed.
            names: all names that may be added, so that enough room is left for the header.
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
        """Append one tensor; a multiple of 8 bytes, so that the next one is aligned."""
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._file:
                if kind is None:
                    self._finish()
            if kind is None:
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Write the header, and wait until all is on disk."""
        metadata = self._metadata | {"crc32": f"{self._checksum:08x}"}
        header = json.dumps({"__metadata__": metadata} | self._header).encode()
        assert len(header) <= self._room, "more was added than was announced"
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.flush()
        os.fsync(self._file.fileno())


def checksum_holds(path: Path) -> bool:
    """Tell whether a file that CheckpointWriter wrote is whole and unchanged."""
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
    """Return the bytes of a contiguous CPU tensor without copying."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
