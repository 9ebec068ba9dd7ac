"""GGUF files as models: read by transformers once, kept in the cache with float32 weights."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cabs_search.checkpoints.origin import ORIGIN
from cabs_search.common.files import whole_folder
from cabs_search.common.formats import first_line

FOLDER = "gguf"
"""Folder of the cache."""
SUFFIX = ".gguf"
NEEDED = ("accelerate", "gguf")


class NotInstalledError(ValueError):
    """A package that reads GGUF files is not installed."""


def gguf_of(path: Path) -> Path | None:
    """Return the GGUF file that a location means: itself, or the only one of a folder's weights.

    Raises:
        ValueError: the folder has several.

    """
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if not files or any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(
            f"{path}: holds {len(files)} GGUF files, of which one must be named: {names}"
        )
    return files[0]


def dequantized(file: Path, cache: Path) -> Path:
    """Return a checkpoint with the weights of a GGUF file, which is made if the cache lacks it.

    Making it takes 4 bytes of memory for each weight.

    Args:
        file: the file.
        cache: the cache folder; checkpoints go by the file's content.

    Raises:
        NotInstalledError: see its class.
        ValueError: transformers does not read this file.

    """
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "blake2b").hexdigest()[:16]
    folder = cache / FOLDER / f"{file.stem}-{content}"
    if folder.is_dir():
        return folder
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotInstalledError(
            f"{file}: a GGUF file needs {' and '.join(missing)}: pip install 'cabs-search[gguf]'"
        )
    try:
        with whole_folder(folder) as to:
            _convert(file, to)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; transformers has OSErrors of its own
        raise ValueError(f"{file}: cannot be read as GGUF: {first_line(error)}") from error
    return folder


def _convert(file: Path, to: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(to)
    types = sorted({tensor.tensor_type.name for tensor in GGUFReader(file).tensors})
    (to / ORIGIN).write_text(json.dumps({"file": file.name, "types": types}) + "\n")
