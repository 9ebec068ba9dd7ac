"""Calibration pass: statistics of the inputs of an expert's linear layers on its own task.

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
from cabs_search.merging.masks.rule import MaskRule
from cabs_search.merging.masks.rules import CALIBRATED
from cabs_search.merging.recipe import BASE, CALIBRATION_ITEMS, calibrated_methods
from cabs_search.scoring.batches import batches, collate
from cabs_search.scoring.likelihoods import trunk_inputs
from cabs_search.scoring.models import load_model, own_tensors, pick_device
from cabs_search.spec.task import heads
from cabs_search.tasks.items import Items

FORMAT = 1


def calibrated(
    family: Family,
    items: Mapping[str, Items],
    masks: Iterable[MaskRule],
    cache: Path,
    device: str = "auto",
) -> Family:
    """Return the family with calibration statistics, if a mask rule needs them.

    Args:
        family: the base and its experts.
        items: the search split, by task.
        masks: mask rules of the study.
        cache: the cache folder; statistics that it has are not computed again.
        device: ``cpu``, ``cuda``, or ``auto``.

    """
    needing = [mask for mask in masks if isinstance(mask, CALIBRATED)]
    if not needing:
        return family
    whole = any(mask.calibration == "gram" for mask in needing)
    own = tasks_of_experts(heads({task: i.task for task, i in items.items()}), family.experts)
    first = {expert: _first(items[task]) for expert, task in own.items()}
    folder = cache / f"calibration-v{FORMAT}"
    paths = {expert: folder / _name(family, expert, first[expert], whole=whole) for expert in first}
    missing = [e for e, path in paths.items() if not (path.exists() and checksum_holds(path))]
    if missing:
        total = sum(len(first[expert]) for expert in missing)
        with tqdm(total=total, unit="item", desc="calibrate", file=sys.stderr) as bar:
            for expert in missing:
                found = statistics(family, expert, first[expert], device, bar, whole=whole)
                write_calibration(paths[expert], *found)
    calibrations = {expert: Calibration(path) for expert, path in paths.items()}
    return replace(family, calibrations=calibrations)


def _first(items: Items) -> Items:
    return replace(items, keys=items.keys[:CALIBRATION_ITEMS], rows=items.rows[:CALIBRATION_ITEMS])


def _name(family: Family, expert: str, items: Items, *, whole: bool) -> str:
    """Return a file name that changes with everything the content depends on."""
    seen = [items.digest, whole, family.fingerprints[expert], sorted(family.alignment.shared)]
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=16).hexdigest() + ".safetensors"


@torch.inference_mode()
def statistics(
    family: Family,
    expert: str,
    items: Items,
    device: str = "auto",
    bar: tqdm[Any] | None = None,
    *,
    whole: bool = True,
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Run an expert over items of its task.

    Args:
        family: the base and its experts.
        expert: name of the expert.
        items: the task's.
        device: ``cpu``, ``cuda``, or ``auto``.
        bar: progress, in items.
        whole: return all of XᵀX, or its diagonal.

    Returns:
        XᵀX, float32, [in, in] (or its diagonal, [in]) of linear layers by the shared name of their
        weight; layers that see the same inputs as one of these, by name; and the names of weights
        that are stored as [in, out].

    """
    on = torch.device(pick_device(device))
    model = load_model(family, expert, items.task.kind, {}, torch.float32, on)
    known = model.get_input_embeddings().weight.shape[0]
    if (most := int(items.tokens["input_ids"].max())) >= known:  # of the base's vocabulary
        raise ValueError(
            f"experts.{expert}: calibration runs the expert itself, which has {known} tokens, but"
            f" an item has token {most}"
        )
    model.config.pad_token_id = items.pad["input_ids"]  # a decoder takes no batches without it
    layers = _linear_layers(model, family, expert)
    grams = _Grams(whole=whole)
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(grams.hook(name)).remove)
        for batch in batches(items.lengths, items.counts):
            inputs = {k: v.to(on) for k, v in collate(items, batch).items()}
            grams.begin(inputs["attention_mask"])
            if items.task.kind.is_causal:
                model.base_model(**trunk_inputs(inputs, model.dtype), use_cache=False)
            else:
                model(**inputs)
            if bar is not None:
                bar.update(len(batch))
    sums = {name: total.float() for name, total in grams.sums.items()}
    return sums, grams.same, [name for name, layer in layers.items() if _is_transposed(layer)]


class _Grams:
    """Sums of XᵀX of layers' inputs; layers with one input, as query, key and value, share one."""

    def __init__(self, *, whole: bool) -> None:
        self.sums: dict[str, Tensor] = {}
        self.same: dict[str, str] = {}
        self._whole = whole
        self._is_token = torch.ones(1)
        self._inputs: list[tuple[Tensor, str]] = []

    def begin(self, attention_mask: Tensor) -> None:
        """Begin a batch."""
        self._is_token, self._inputs = attention_mask.reshape(-1).bool(), []

    def hook(self, name: str) -> Any:
        """Return a forward pre-hook of a layer."""

        def add(_: Any, inputs: tuple[Tensor, ...]) -> None:
            owner = next((first for tensor, first in self._inputs if tensor is inputs[0]), name)
            if owner != name and self.same.setdefault(name, owner) == owner:
                return
            self._inputs.append((inputs[0], name))
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            # One row per token; a pooler has one per item, without padding.
            if x.shape[0] == self._is_token.numel():
                x = x[self._is_token]
            part = (x.T @ x if self._whole else x.square().sum(0)).double().cpu()
            self.sums[name] = self.sums[name] + part if name in self.sums else part

        return add


def _linear_layers(model: Any, family: Family, expert: str) -> dict[str, Any]:
    """Return linear layers whose weight is a shared tensor, by the tensor's shared name."""
    own = own_tensors(model, family.experts[expert], family.alignment.shared)
    names = {id(tensor): name for name, tensor in own.items()}
    linear = (module for module in model.modules() if _is_linear(module))
    return {names[id(m.weight)]: m for m in linear if id(m.weight) in names}


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or _is_transposed(module)


def _is_transposed(module: Any) -> bool:
    """Tell whether the weight is stored as [in, out], as GPT-2 has it."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def tasks_of_experts(heads: Mapping[str, str], experts: Iterable[str]) -> dict[str, str]:
    """Return the task of each expert that calibration items are taken from, if it has one.

    That is the first one that is scored with its head; of language models, which have no heads,
    the task of the expert's name, else the first one.

    Args:
        heads: by task the model whose head scores it, an expert or the base.
        experts: names.

    """
    found = {}
    for expert in experts:
        own = [task for task, model in heads.items() if model == expert]
        any_model = [task for task, model in heads.items() if model == BASE]
        own += [task for task in any_model if task == expert] + any_model
        if own:
            found[expert] = own[0]
    return found


def check_calibration(
    methods: Iterable[str], experts: Iterable[str], expert_of: Mapping[str, str]
) -> None:
    """Raise ValueError if a mask rule needs calibration items of an expert without a task.

    Args:
        methods: names of methods.
        experts: names.
        expert_of: model whose head scores a task, an expert or the base, by the task's name.

    """
    needing = calibrated_methods(methods)
    idle = set(experts) - tasks_of_experts(expert_of, experts).keys()
    if idle and needing:
        raise ValueError(
            f"space.method: {needing[0]} takes calibration items from a task of each expert, but"
            f" {min(idle)} has none"
        )
