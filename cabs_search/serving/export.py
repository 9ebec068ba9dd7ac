"""A recipe as a folder that transformers loads.

PATH/                  the merged trunk: ``AutoModel.from_pretrained(PATH)``; of a causal language
                       model all of it: ``AutoModelForCausalLM``; shards of 5 GB if it is larger
PATH/recipe.json       the recipe
PATH/recipe.yaml       the recipe with its models, as ``merge --recipe`` takes it
PATH/mergekit.yaml     the same for mergekit, of a language model, if it can be said there
PATH/README.md         a model card
PATH/adapter/          the merge as a LoRA adapter of the base, if that is asked for
PATH/heads/TASK/       trunk and head, for the ``AutoModelFor...`` of the task's kind; the trunk's
                       file is a hard link if the file system has them

Compact, for stores that know no links, the trunk is written once, in PATH/trunks/, and the heads'
indices name it there (once more if an expert calls its tensors by other names); PATH itself is then
no model, unless a task is scored without a head.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import torch
from torch import Tensor

from cabs_search.checkpoints.adapter import Expert
from cabs_search.checkpoints.checkpoint import Checkpoint, all_finite
from cabs_search.checkpoints.vocabulary import COMMON_ROWS, SAME
from cabs_search.checkpoints.writer import CheckpointWriter
from cabs_search.merging.cache import StoredVector
from cabs_search.merging.family import Family
from cabs_search.merging.layers import count_layers, layer_of
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.recipe import BASE, Recipe
from cabs_search.merging.stack import Stack, renumbered, stacked_names, stacked_tensors
from cabs_search.serving.adapter import ADAPTER, check_adapter, write_adapter
from cabs_search.serving.card import location_of, model_card
from cabs_search.serving.configs import set_layers, set_pad_token
from cabs_search.spec.load import dump_plain
from cabs_search.spec.mergekit.methods import Notes
from cabs_search.spec.mergekit.write import write_mergekit
from cabs_search.spec.recipe_file import RecipeFile

SIDE_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
TRUNK, HEAD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
RECIPE, MERGEKIT = "recipe.yaml", "mergekit.yaml"
ROOT, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
MODEL_FILES = ("generation_config.json", "chat_template*")
"""Files of a language model that a merge takes over from the base, beside its tokenizer."""


def export(
    family: Family,
    recipe: Recipe,
    to: str | Path,
    *,
    heads: Mapping[str, str] | None = None,
    facts: Iterable[str] = (),
    dtype: torch.dtype | None = None,
    vectors: Mapping[str, StoredVector] | None = None,
    progress: Callable[[int], Any] | None = None,
    compact: bool = False,
    adapter: int | Literal["exact"] | None = None,
) -> Path:
    """Write a merged model tensor by tensor, so that memory does not grow with the model.

    Args:
        family: the base and its experts.
        recipe: the recipe to merge by.
        to: a folder that does not exist, or is empty; it gets its name only when it is complete.
        heads: the expert whose head to use, by the name of the folder under ``heads/``, or
            ``BASE``, which needs no folder; None: the own one of every expert that has one.
        facts: lines for the model card, such as scores.
        dtype: of the merged weights; None: the base's own.
        vectors: the method's vectors by expert, in pruning order; None: pruned and combined here.
        progress: called with the number of weights done.
        compact: write the trunk once for all heads, and no model without a head.
        adapter: write the merge as an adapter as well: of this rank, or exact; None: do not.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is not empty, a checkpoint cannot be read, the recipe is for another
            number of layers, or the merge cannot be stacked, or written as an adapter.

    """
    path = Path(to)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{to}: must be a new or an empty folder")
    layers = count_layers(family.alignment.shared)
    if recipe.layers not in (0, layers):
        raise ValueError(f"layers: must be the model's number, {layers}, but got {recipe.layers}")
    dtype = dtype or family.base.read(family.alignment.shared[0]).dtype
    merged = merged_tensors(family, recipe, dtype, vectors)
    if recipe.stack:
        family.layout.check(recipe.stack)
        merged = stacked_tensors(merged, recipe.stack, family.layout, family.read)
    rank = None if adapter == "exact" else adapter
    if adapter:
        check_adapter(family, recipe, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    _hash_beside(family)
    work = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write_trunk(family, work, merged, recipe.stack, dtype, progress)
        own = {name: name for name, head in family.alignment.heads.items() if head}
        chosen = own if heads is None else {n: e for n, e in heads.items() if e != BASE}
        trunks: dict[tuple[str, ...], Path] = {}
        for name, expert in chosen.items():
            _write_head(
                family,
                expert,
                Checkpoint(work),
                work / "heads" / name,
                recipe.stack,
                dtype,
                trunks,
                compact=compact,
            )
        if compact and chosen and BASE not in (heads or {}).values():
            for file in work.glob("model*"):
                file.unlink()
        if adapter:
            written = write_adapter(family, recipe, work / ADAPTER, rank, vectors)
            facts = [*facts, f"- `{ADAPTER}/`: the merge as a LoRA adapter of the base, {written}"]
        (work / "recipe.json").write_text(
            json.dumps(recipe.as_dict(), indent=2, ensure_ascii=False) + "\n"
        )
        if not compact:
            asked = recipe_file(family, recipe, None if chosen == own else chosen, dtype)
            (work / RECIPE).write_text(asked.as_yaml(), encoding="utf-8")
            if not own:
                _write_mergekit(asked, work / MERGEKIT)
        (work / "README.md").write_text(
            model_card(family, recipe, list(chosen), facts, dtype), encoding="utf-8"
        )
        if path.exists():
            path.rmdir()
        work.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


def recipe_file(
    family: Family, recipe: Recipe, heads: Mapping[str, str] | None, dtype: torch.dtype
) -> RecipeFile:
    """Return a merge as a file names it, with hub ids or absolute paths; ``heads``: as there."""
    return RecipeFile(
        recipe=recipe,
        base=location_of(family.base.folder),
        experts={name: location_of(one.folder) for name, one in family.experts.items()},
        vocabulary=COMMON_ROWS if family.alignment.common_rows else SAME,
        dtype=str(dtype).removeprefix("torch."),
        heads=heads,
    )


def _write_mergekit(asked: RecipeFile, to: Path) -> None:
    """Write the recipe for mergekit, with what differs there as comments; not if that is a lot."""
    notes = Notes()
    try:
        values = write_mergekit(asked, notes)
    except ValueError:
        return
    if not notes.losses:
        comments = "".join(f"# {line}\n" for line in notes.lines)
        to.write_text(comments + dump_plain(values), encoding="utf-8")


def _hash_beside(family: Family) -> None:
    """Start to hash base and experts for the model card, each in a thread of its own.

    They read what is about to be merged: files larger than memory are read from the disk once.
    """
    for checkpoint in (family.base, *family.experts.values()):

        def hash_one(checkpoint: Expert = checkpoint) -> None:
            with suppress(ValueError):  # the card raises it again
                _ = checkpoint.fingerprint

        Thread(target=hash_one, daemon=True).start()


def _write_trunk(
    family: Family,
    to: Path,
    merged: Iterable[tuple[str, Tensor]],
    stack: Stack,
    dtype: torch.dtype,
    progress: Callable[[int], Any] | None,
) -> None:
    base = family.base
    own = _own_names(family, base, stack)
    sources = stacked_names(family.alignment.shared, stack) | {name: name for name in own}
    tensors = itertools.chain(merged, ((name, base.read(name)) for name in own))
    files = {}
    shards = _shards(base, sources, dtype)
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = several if len(shards) > 1 else ROOT
        with CheckpointWriter(to / file, shard, {"format": "pt"}) as writer:
            for name, tensor in itertools.islice(tensors, len(shard)):
                in_model = _name_in(base, name, sources[name])
                files[in_model] = file
                writer.add(in_model, _converted(name, tensor, dtype))
                if progress and sources[name] in family.alignment.shapes:
                    progress(tensor.numel())
    if len(shards) > 1:
        _write_index(to, files)
    _copy_side_files(base, to, dtype, stack)


def _own_names(family: Family, checkpoint: Expert, stack: Stack) -> list[str]:
    """Return a model's tensors that are not merged; of a stack's layers also no constants."""
    return [
        name
        for name in checkpoint.names
        if name not in family.alignment.shapes
        and name not in checkpoint.repeated
        and not (stack and name in checkpoint.constants and layer_of(name) is not None)
    ]


def _name_in(checkpoint: Expert, name: str, source: str) -> str:
    """Return the name that a model has for a tensor, which is ``source`` but for its layer."""
    in_model = checkpoint.model_name(source)
    layer = layer_of(name)
    return in_model if layer is None or name == source else renumbered(in_model, layer)


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype if it is floating-point; ValueError if a weight is not finite."""
    converted = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if not all_finite(converted):
        raise ValueError(f"every weight must be finite, but in {dtype} one of {name} is not")
    return converted


def _shards(base: Checkpoint, sources: Mapping[str, str], dtype: torch.dtype) -> list[list[str]]:
    """Divide tensors, in order, into files of at most SHARD_BYTES, one tensor at the least.

    ``sources`` are the base's tensors of the same shape, by name.
    """
    shards, left = list[list[str]](), 0
    for name, source in sources.items():
        size = math.prod(base.shape(source)) * dtype.itemsize
        if size > left or not shards:
            shards.append([])
            left = SHARD_BYTES
        shards[-1].append(name)
        left -= size
    return shards


def _write_index(to: Path, files: Mapping[str, str]) -> None:
    """Write the index of a checkpoint of several files; ``files``: by tensor."""
    size = sum((to / file).stat().st_size for file in set(files.values()))
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (to / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_head(
    family: Family,
    expert: str,
    merged: Checkpoint,
    to: Path,
    stack: Stack,
    dtype: torch.dtype,
    trunks: dict[tuple[str, ...], Path],
    *,
    compact: bool,
) -> None:
    """Write the model of one task: its head, and the trunk under the expert's names.

    ``trunks`` holds the files of trunks that are written, by their tensors' names.
    """
    checkpoint = family.experts[expert]
    shared = stacked_names(family.alignment.shared, stack)
    names = tuple(_name_in(checkpoint, name, source) for name, source in shared.items())
    to.mkdir(parents=True)
    if names not in trunks:
        file = to.parents[1] / "trunks" / f"{len(trunks)}.safetensors" if compact else to / TRUNK
        with CheckpointWriter(file, names, {"format": "pt"}) as writer:
            for in_model, name in zip(names, shared, strict=True):
                writer.add(in_model, merged.read(name))
        trunks[names] = file
    elif not compact:
        _link(trunks[names], to / TRUNK)
    trunk = f"../../trunks/{trunks[names].name}" if compact else TRUNK
    own = {n: checkpoint.model_name(n) for n in _own_names(family, checkpoint, stack)}
    with CheckpointWriter(to / HEAD, own.values(), {"format": "pt"}) as writer:
        for name, in_model in own.items():
            # Buffers, such as position ids, come from the base.
            is_shared = name in family.base.names and not checkpoint.is_float(name)
            tensor = (family.base if is_shared else checkpoint).read(name)
            writer.add(in_model, _converted(name, tensor, dtype))
    _write_index(to, dict.fromkeys(names, trunk) | dict.fromkeys(own.values(), HEAD))
    _copy_side_files(checkpoint, to, dtype, stack, fallback=family.base)
    set_pad_token(to, checkpoint.folder)


def compact_bytes(
    family: Family, heads: Iterable[str], dtype: torch.dtype, stack: Stack = ()
) -> int:
    """Return the size of a compact export without configs and tokenizers.

    ``heads`` are the heads' models, an expert or the base for each head.
    """
    checkpoints = [family.checkpoint(name) for name in heads]
    trunks = {tuple(c.model_name(name) for name in family.alignment.shared) for c in checkpoints}
    own = sum(
        math.prod(c.shape(name))
        for c in checkpoints
        for name in c.names
        if name not in family.alignment.shapes
    )
    return dtype.itemsize * (len(trunks) * trunk_weights(family, stack) + own)


def trunk_weights(family: Family, stack: Stack) -> int:
    """Return the number of weights of a merged trunk."""
    return sum(map(family.numel, stacked_names(family.alignment.shared, stack).values()))


def _link(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except OSError:
        shutil.copy(source, to)


def _copy_side_files(
    checkpoint: Expert,
    to: Path,
    dtype: torch.dtype,
    stack: Stack,
    fallback: Checkpoint | None = None,
) -> None:
    """Write the config, with the dtype to load the model in; copy the tokenizer and MODEL_FILES.

    If the checkpoint has no tokenizer, the fallback's is copied.
    """
    config = {k: v for k, v in checkpoint.config.items() if k != "torch_dtype"}
    config["dtype"] = str(dtype).removeprefix("torch.")
    (to / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if stack:
        set_layers(to, checkpoint.folder, stack)
    for file in (file for pattern in MODEL_FILES for file in checkpoint.folder.glob(pattern)):
        shutil.copy(file, to / file.name)
    for source in (checkpoint, fallback):
        if source is None:
            continue
        files = {file for pattern in SIDE_FILES for file in source.folder.glob(pattern)}
        for file in files:
            shutil.copy(file, to / file.name)
        if files:
            return
