"""Locations of models as a spec writes them, and the cache folder."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from platformdirs import user_cache_path

from cabs_search.common.formats import first_line
from cabs_search.spec import gguf

HUB_ID = r"[\w.-]+/[\w.-]+(@[\w./-]+)?"
FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "*token*",
    "vocab*",
    "merges.txt",
    "*.model",
    *("generation_config.json", "chat_template*"),
)
"""Files of a model that are needed to load it, and downloaded from the hub."""
OLD_FILES = ("pytorch_model*", "adapter_model.bin")
"""Files that older models and adapters have in place of safetensors."""
MOST_NAME_BYTES, MOST_PATH = 255, 4000
"""Lengths of a file's name and of its path, at most."""


class UnreachableError(ValueError):
    """Something that is not at hand now: of the hub, or of a package that is not installed."""


def cache_folder() -> Path:
    """Return ``$CABS_SEARCH_CACHE``, else the user's cache folder, which is safe to delete."""
    return Path(os.environ.get("CABS_SEARCH_CACHE") or user_cache_path("cabs-search"))


def locate(text: str, relative_to: Path | None = None) -> Path:
    """Return the folder that a location names; a hub id is downloaded into the hub's own cache.

    Args:
        text: a folder; a GGUF file, or a folder with one and no other weights, of which a
            checkpoint is made in the cache; ``package:NAME/PATH`` inside an installed package;
            ``cache:PATH`` inside the cache folder; or a Hugging Face hub id, ``owner/name`` or
            ``owner/name@revision``.
        relative_to: start of a relative folder; None: the working directory.

    Raises:
        ValueError: there is no such folder, or a GGUF file cannot be read.
        UnreachableError: the hub does not give a hub id, or what reads GGUF files is not installed.

    """
    if not text:
        raise ValueError("a folder or a hub id is needed, but got nothing")
    if is_hub_id(text, (relative_to or Path()) / as_path(text)):
        return _download(text)
    path = _local_path(text, relative_to)
    try:
        file = gguf.gguf_of(path)
        return gguf.dequantized(file, cache_folder()) if file else _existing(path, text)
    except gguf.NotInstalledError as error:
        raise UnreachableError(str(error)) from error


def as_path(text: str) -> Path:
    """Return the path that a text names, with ``~`` expanded.

    Raises:
        ValueError: no file can have this name, or there is no such user.

    """
    path = Path(text)
    has_control = any(ord(letter) < 32 or ord(letter) == 127 for letter in text)
    longest = max((len(part.encode(errors="surrogatepass")) for part in path.parts), default=0)
    if has_control or longest > MOST_NAME_BYTES or len(text) > MOST_PATH:
        raise ValueError(f"{text[:MOST_NAME_BYTES]!r}: no file can have this name")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {error}") from error


def is_hub_id(text: str, path: Path) -> bool:
    """Tell whether a location is a hub id, and no path of something that is there."""
    is_path = path.exists() or text.startswith((".", "~"))
    return not is_path and re.fullmatch(HUB_ID, text) is not None


def path_of(text: str, folder: Path) -> Path | None:
    """Return the path that a location names; None for hub ids, packages and the cache.

    ``folder``: start of relative paths.
    """
    path = folder / as_path(text)
    is_elsewhere = text.startswith(("cache:", "package:")) or is_hub_id(text, path)
    return None if is_elsewhere else path


def local_folder(text: str, relative_to: Path | None = None) -> Path:
    """Return the folder that a location names, as ``locate`` does, but never of the hub.

    Raises:
        ValueError: there is no such folder.

    """
    return _existing(_local_path(text, relative_to), text)


def files_of(folder: Path) -> list[Path]:
    """List the files of a model's folder that are needed to load it."""
    found = _matching(folder, FILES)
    if not any(path.suffix == ".safetensors" for path in found):
        found |= _matching(folder, OLD_FILES)
    return sorted(found)


def _matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    return {path for path in chain(*map(folder.glob, patterns)) if path.is_file()}


def _local_path(text: str, relative_to: Path | None) -> Path:
    """Return the path that a location names, which need not be there."""
    kind, _, rest = text.partition(":")
    if kind == "cache":
        return cache_folder() / as_path(rest)
    if kind == "package":
        name, _, inside = rest.partition("/")
        package = find_spec(name) if name.isidentifier() else None
        if package is None or not package.submodule_search_locations:
            raise ValueError(f"{text}: package {name} is not installed")
        return Path(package.submodule_search_locations[0]) / inside
    return (relative_to or Path()) / as_path(text)


def _existing(path: Path, text: str) -> Path:
    if not path.is_dir():
        where = f" ({path})" if str(path) != text else ""
        hint = ""
        if text.startswith("cache:quickstart"):
            option = " --language-model" if "language-model" in text else ""
            hint = f"; `cabs-search quickstart{option}` makes it"
        elif path.parent == cache_folder() / gguf.FOLDER:
            hint = "; it was made of a GGUF file: `cabs-search plan` of a spec with that makes it"
        kind = "file" if path.suffix == gguf.SUFFIX else "folder"
        raise ValueError(f"{text}: no such {kind}{where}{hint}")
    return path.resolve()


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    name, _, revision = hub_id.partition("@")
    disable_progress_bars()
    try:
        folder = snapshot_download(name, revision=revision or None, allow_patterns=list(FILES))
        if not any(Path(folder).glob("*.safetensors")):
            folder = snapshot_download(
                name, revision=revision or None, allow_patterns=list(OLD_FILES)
            )
    except Exception as error:
        text = f"{hub_id}: no such folder, and the hub did not give it: {first_line(error)}"
        raise UnreachableError(text) from error
    return Path(folder)
