"""The calibration pass: an expert on items of its own task, and what its linear layers see.

Items are the first of the task's search split; the confirm split stays unseen.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cabs_search.checkpoints.writer import checksum_holds
from cabs_search.merging.calibration import Calibration, write_calibration
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rule import MaskRule as Mask
from cabs_search.merging.masks.rules import CALIBRATED, MASKS
from cabs_search.merging.recipe import split_name
from cabs_search.scoring.batches import batches, collate
from cabs_search.scoring.models import load_model, pick_device
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items

FORMAT = 1
ITEMS = 128
"""Items of a task, as Wanda and SparseGPT use sequences."""


def calibrate(
    spec: Spec, family: Family, items: Mapping[str, Items], cache: Path, masks: Iterable[Mask]
) -> dict[str, Calibration]:
    """Statistics of every expert that has a task, from the cache or made now; none where no rule
    needs them.

    Args:
        items: the search split, by task.
        cache: the cache folder.
        masks: the rules of the study.

    """
    needing = [mask for mask in masks if isinstance(mask, CALIBRATED)]
    if not needing:
        return {}
    whole = any(mask.calibration == "gram" for mask in needing)
    tasks = {spec.expert_of(task): task for task in reversed(spec.tasks)}
    tasks = {expert: tasks[expert] for expert in spec.experts if expert in tasks}
    first = {expert: _first(items[task]) for expert, task in tasks.items()}
    folder = cache / f"calibration-v{FORMAT}"
    paths = {expert: folder / _name(family, expert, first[expert], whole=whole) for expert in tasks}
    missing = {
        expert: path
        for expert, path in paths.items()
        if not (path.exists() and checksum_holds(path))
    }
    if missing:
        with tqdm(
            total=sum(len(first[e]) for e in missing),
            unit="item",
            desc="calibrate",
            file=sys.stderr,
        ) as bar:
            for expert, path in missing.items():
                write_calibration(
                    path, *statistics(spec, family, tasks[expert], first[expert], bar, whole=whole)
                )
    return {expert: Calibration(path) for expert, path in paths.items()}


def _first(items: Items) -> Items:
    return replace(items, keys=items.keys[:ITEMS], rows=items.rows[:ITEMS])


def _name(family: Family, expert: str, items: Items, *, whole: bool) -> str:
    """A file's name that says what its content depends on."""
    seen = [items.digest, whole, family.fingerprints[expert], sorted(family.alignment.shared)]
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=16).hexdigest() + ".safetensors"


@torch.inference_mode()
def statistics(
    spec: Spec,
    family: Family,
    task: str,
    items: Items,
    bar: tqdm[Any] | None = None,
    *,
    whole: bool = True,
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Run a task's expert over items.

    Args:
        whole: whether XᵀX is wanted, or just its diagonal.

    Returns:
        XᵀX, float32, [in, in] (or its diagonal, [in]) of linear layers by the shared name of their
        weight; the layers that see the same inputs as one of these, by name; and the names of
        weights that are stored as [in, out].

    """
    expert, device = spec.expert_of(task), torch.device(pick_device(spec.device))
    model = load_model(family, expert, spec.tasks[task].kind, {}, torch.float32, device)
    model.config.pad_token_id = items.pad["input_ids"]  # without which a decoder takes no batches
    layers = _linear_layers(model, family, expert)
    watch = _Watch(whole=whole)
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(watch.hook(name)).remove)
        for batch in batches(items.lengths, items.counts):
            inputs = {k: v.to(device) for k, v in collate(items, batch).items()}
            watch.begin(inputs["attention_mask"])
            model(**inputs)
            if bar is not None:
                bar.update(len(batch))
    found = {name: gram.float() for name, gram in watch.grams.items()}
    return found, watch.same, [name for name, layer in layers.items() if _is_transposed(layer)]


class _Watch:
    """Adds up XᵀX of what layers see; layers that are given one tensor, as queries, keys and values
    are, share it.
    """

    def __init__(self, *, whole: bool) -> None:
        self.grams: dict[str, Tensor] = {}
        self.same: dict[str, str] = {}
        self._whole = whole
        self._present = torch.ones(1)
        self._seen: list[tuple[Tensor, str]] = []

    def begin(self, mask: Tensor) -> None:
        """A batch with this attention mask is next."""
        self._present, self._seen = mask.reshape(-1).bool(), []

    def hook(self, name: str) -> Any:
        """What a layer calls before it computes."""

        def see(_: Any, inputs: tuple[Tensor, ...]) -> None:
            owner = next((first for tensor, first in self._seen if tensor is inputs[0]), name)
            if owner != name and self.same.setdefault(name, owner) == owner:
                return
            self._seen.append((inputs[0], name))
            seen = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            if (
                seen.shape[0] == self._present.numel()
            ):  # one row a token, else one an item, as a pooler has
                seen = seen[self._present]
            part = (seen.T @ seen if self._whole else seen.square().sum(0)).double().cpu()
            self.grams[name] = self.grams[name] + part if name in self.grams else part

        return see


def _linear_layers(model: Any, family: Family, expert: str) -> dict[str, Any]:
    """Linear layers whose weight is a shared tensor, by the tensor's name."""
    checkpoint = family.experts[expert]
    modules = {
        f"{path}.weight": module for path, module in model.named_modules() if _is_linear(module)
    }
    names = {checkpoint.model_name(name): name for name in family.alignment.shared}
    return {names[in_model]: module for in_model, module in modules.items() if in_model in names}


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or _is_transposed(module)


def _is_transposed(module: Any) -> bool:
    """GPT-2's layers keep their weights as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def calibrated(
    spec: Spec, family: Family, items: Mapping[str, Items], masks: Iterable[Mask]
) -> Family:
    """A family that knows what its experts' layers saw, where a rule needs it."""
    return replace(family, calibrations=calibrate(spec, family, items, cache_folder(), masks))


def check_calibration(spec: Spec) -> None:
    """Raises ValueError where a rule needs calibration items of an expert that has no task."""
    idle = set(spec.experts) - {spec.expert_of(task) for task in spec.tasks}
    if idle and (names := calibrated_methods(spec)):
        raise ValueError(
            f"space.method: {names[0]} takes calibration items from a task of each expert, but"
            f" {min(idle)} has none"
        )


def calibrated_methods(spec: Spec) -> list[str]:
    """The methods of a spec that need a calibration pass."""
    names = (*spec.space.method, *spec.baselines)
    return [name for name in names if issubclass(MASKS[split_name(name)[1]], CALIBRATED)]
