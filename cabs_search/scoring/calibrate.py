"""Calibration pass: statistics of an expert on its own task.

Items are the first of the task's search split; the confirm split stays unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cabs_search.checkpoints.writer import checksum_holds
from cabs_search.kinds.classes import Choosing
from cabs_search.merging.calibration import Calibration, CalibrationKey, write_calibration
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rule import MaskRule
from cabs_search.merging.method import CALIBRATION_ITEMS, calibrated_methods, rule_of
from cabs_search.merging.recipe import BASE
from cabs_search.scoring.batches import batches, collate
from cabs_search.scoring.forward import model_outputs, shared_pass
from cabs_search.scoring.likelihoods import trunk_inputs
from cabs_search.scoring.models import load_model, own_tensors, pick_device
from cabs_search.spec.task import Task, heads
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
    needed = {mask.calibration for mask in masks} - {"none"}
    if not needed:
        return family
    own = tasks_of_experts(heads({task: i.task for task, i in items.items()}), family.experts)
    first = {expert: _first(items[task]) for expert, task in own.items()}
    folder = cache / f"calibration-v{FORMAT}"
    whole = "gram" in needed
    paths: dict[CalibrationKey, Path] = {}
    for expert, its in first.items():
        if needed - {"fisher"}:
            paths["layers", expert] = folder / _name(family, expert, its, whole)
        if "fisher" in needed:
            paths["fisher", expert] = folder / _name(family, expert, its, "fisher")
    missing = [at for at, path in paths.items() if not (path.exists() and checksum_holds(path))]
    if missing:
        total = sum(len(first[expert]) for _, expert in missing)
        with tqdm(total=total, unit="item", desc="calibrate", file=sys.stderr) as bar:
            for key in missing:
                kind, expert = key
                found: tuple[Any, ...]
                if kind == "fisher":
                    found = (fisher(family, expert, first[expert], device, bar),)
                else:
                    found = statistics(family, expert, first[expert], device, bar, whole=whole)
                _check_finite(expert, found[0])
                write_calibration(paths[key], *found)
    calibrations = {key: Calibration(path) for key, path in paths.items()}
    return replace(family, calibrations=calibrations)


def _check_finite(expert: str, found: Mapping[str, Tensor]) -> None:
    """Raise ValueError if statistics are not finite: no mask can be made of them."""
    for name, statistic in found.items():
        if not bool(statistic.isfinite().all()):
            raise ValueError(
                f"experts.{expert}: {name}: what calibration items do there is not finite"
            )


def _first(items: Items) -> Items:
    return replace(items, keys=items.keys[:CALIBRATION_ITEMS], rows=items.rows[:CALIBRATION_ITEMS])


def _name(family: Family, expert: str, items: Items, what: bool | str) -> str:
    """Return a file name that changes with everything the content depends on.

    ``what`` is ``fisher``, or of statistics of layers whether they are whole.
    """
    seen = [items.digest, what, family.fingerprints[expert], sorted(family.alignment.shared)]
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
    model = _load(family, expert, items, on)
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


def _load(family: Family, expert: str, items: Items, device: torch.device) -> Any:
    """Load an expert in float32. Raises ValueError if it does not know a token of the items."""
    model = load_model(family, expert, items.task.kind, {}, torch.float32, device)
    known = model.get_input_embeddings().weight.shape[0]
    if (most := int(items.tokens["input_ids"].max())) >= known:  # of the base's vocabulary
        raise ValueError(
            f"experts.{expert}: calibration runs the expert itself, which has {known} tokens, but"
            f" an item has token {most}"
        )
    return model


def fisher(
    family: Family, expert: str, items: Items, device: str = "auto", bar: tqdm[Any] | None = None
) -> dict[str, Tensor]:
    """Return the diagonal of an expert's Fisher information, divided by its root mean square.

    That is the mean over items of Σ p(y|x)·(∂ log p(y|x)/∂θ)² over all answers y, with p the
    expert's own probabilities: no label is read (arXiv 2111.09832). It takes one backward
    pass for each item and answer.

    Args:
        family, expert, device, bar: as of ``statistics``.
        items: the task's, of a kind that chooses among answers.

    Returns:
        By shared name, float32, in the tensor's shape.

    """
    on, kind = torch.device(pick_device(device)), items.task.kind
    assert isinstance(kind, Choosing), "check_calibration() asks first"
    model = _load(family, expert, items, on).requires_grad_(False)
    own = own_tensors(model, family.experts[expert], family.alignment.shared)
    used = {name: tensor for name, tensor in own.items() if isinstance(tensor, torch.nn.Parameter)}
    for parameter in used.values():
        parameter.requires_grad_()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.sparse = True  # an item has few of the rows
    sums = {name: torch.zeros_like(parameter) for name, parameter in used.items()}
    scored = [(model, items, np.arange(len(items)))]
    with shared_pass(scored):
        for place, item in enumerate(items.rows):
            (output,) = model_outputs(scored, np.array([place]), on)
            logs = kind.answer_logits(items.task, output, [item])[0].log_softmax(0)
            for answer, chance in enumerate(logs.detach().exp().tolist()):
                found = torch.autograd.grad(
                    logs[answer], [*used.values()], retain_graph=True, allow_unused=True
                )
                for total, gradient in zip(sums.values(), found, strict=True):
                    _add_square(total, gradient, chance)
            if bar is not None:
                bar.update(1)
    shared = {name: _as_base(total, family, expert, name) for name, total in sums.items()}
    squares = sum(float(total.square().sum(dtype=torch.float64)) for total in shared.values())
    size = math.sqrt(squares / sum(total.numel() for total in shared.values())) or 1.0
    return {name: (total / size).cpu() for name, total in shared.items()}


def _as_base(total: Tensor, family: Family, expert: str, name: str) -> Tensor:
    """Return a tensor of the base's shape: of embeddings the rows that the expert has, too."""
    shape = tuple(family.alignment.shapes[name])
    if tuple(total.shape) == shape:
        return total
    _, common = family.alignment.common_rows[expert]
    whole = total.new_zeros(shape)
    whole[:common] = total[:common]
    return whole


def _add_square(total: Tensor, gradient: Tensor | None, factor: float) -> None:
    """Add a gradient's squares times a factor; None: the tensor is not used."""
    if gradient is None:
        return
    if gradient.is_sparse:
        rows = gradient.coalesce()
        total.index_add_(0, rows.indices()[0], rows.values().square(), alpha=factor)
    else:
        total.addcmul_(gradient, gradient, value=factor)


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
    methods: Iterable[str], experts: Iterable[str], tasks: Mapping[str, Task]
) -> None:
    """Raise ValueError if a mask rule needs calibration items that an expert has none of, or none
    of a kind of task that gives it what it needs.

    Args:
        methods: names of methods.
        experts: names.
        tasks: by name.

    """
    needing = calibrated_methods(methods)
    own = tasks_of_experts(heads(tasks), experts)
    idle = set(experts) - own.keys()
    if idle and needing:
        raise ValueError(
            f"space.method: {needing[0]} takes calibration items from a task of each expert, but"
            f" {min(idle)} has none"
        )
    for name in needing:
        for task in own.values() if rule_of(name).calibration == "fisher" else ():
            if not isinstance(tasks[task].kind, Choosing):
                raise ValueError(
                    f"space.method: {name} needs the probabilities of classes or choices, but task"
                    f" {task} is {tasks[task].kind}"
                )
