"""Where things are: the cache folder, and what a spec may write for a folder of weights."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from cabs_search.common.formats import first_line

HUB_ID = r"[\w.-]+/[\w.-]+(@[\w./-]+)?"
WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "*token*",
    "vocab*",
    "merges.txt",
    "*.model",
)


class UnreachableError(ValueError):
    """What a location names is on the hub, which does not give it now."""


def is_hub_id(text: str, relative_to: Path | None = None) -> bool:
    """Whether a location names something on the hub, not here."""
    here = (relative_to or Path()) / Path(text).expanduser()
    return not here.exists() and not text.startswith(".") and bool(re.fullmatch(HUB_ID, text))


def cache_folder() -> Path:
    """``$CABS_SEARCH_CACHE``, else the user's cache folder. Safe to delete."""
    return Path(os.environ.get("CABS_SEARCH_CACHE") or user_cache_path("cabs-search"))


def locate(text: str, relative_to: Path | None = None) -> Path:
    """The folder that a location names; a hub id is downloaded into the hub's own cache.

    Args:
        text: a folder; ``package:NAME/PATH`` inside an installed package; ``cache:PATH`` inside the
            cache folder; or
            a Hugging Face hub id, ``owner/name`` or ``owner/name@revision``.
        relative_to: what a relative folder starts from; None: the working directory.

    Raises:
        ValueError: nothing is there.
        UnreachableError: it is a hub id, and the hub does not give it.

    """
    kind, _, rest = text.partition(":")
    if kind == "cache":
        return _existing(cache_folder() / rest, text)
    if kind == "package":
        name, _, inside = rest.partition("/")
        found = find_spec(name) if name.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise ValueError(f"{text}: package {name} is not installed")
        return _existing(Path(found.submodule_search_locations[0]) / inside, text)
    path = (relative_to or Path()) / Path(text).expanduser()
    if not is_hub_id(text, relative_to):
        return _existing(path, text)
    return _download(text)


def _existing(path: Path, text: str) -> Path:
    if not path.is_dir():
        hint = "; `cabs-search quickstart` makes it" if text.startswith("cache:quickstart/") else ""
        raise ValueError(
            f"{text}: no such folder" + (f" ({path})" if str(path) != text else "") + hint
        )
    return path.resolve()


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    name, _, revision = hub_id.partition("@")
    disable_progress_bars()
    try:
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=list(WEIGHT_FILES)
        )
        if not any(Path(found).glob("*.safetensors")):
            found = snapshot_download(
                name, revision=revision or None, allow_patterns=["pytorch_model*"]
            )
    except Exception as error:
        text = f"{hub_id}: no such folder, and the hub did not give it: {first_line(error)}"
        raise UnreachableError(text) from error
    return Path(found)
