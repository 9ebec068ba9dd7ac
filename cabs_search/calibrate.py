"""The calibration pass: an expert on items of its own task, and what its linear layers see.

Items are the first of the task's search split; the confirm split stays unseen.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cabs_search.calibration import Calibration, write_calibration
from cabs_search.checkpoint import checksum_holds
from cabs_search.evaluate import batches, collate, load_model, pick_device
from cabs_search.sparsify import CALIBRATED, Mask
from cabs_search.spec import Spec
from cabs_search.store import Family
from cabs_search.tasks import Items

FORMAT = 1
ITEMS = 128
"""Items of a task, as Wanda and SparseGPT use sequences."""


def calibrate(
    spec: Spec, family: Family, items: Mapping[str, Items], cache: Path, masks: Iterable[Mask]
) -> dict[str, Calibration]:
    """Statistics of every expert that has a task, from the cache or made now; none where no rule needs them.

    Args:
        items: the search split, by task.
        cache: the cache folder.
        masks: the rules of the study.

    """
    if not any(isinstance(mask, CALIBRATED) for mask in masks):
        return {}
    tasks = {spec.expert_of(task): task for task in reversed(spec.tasks)}
    tasks = {expert: tasks[expert] for expert in spec.experts if expert in tasks}
    folder = cache / f"calibration-v{FORMAT}"
    paths = {expert: folder / _name(family, expert, items[task]) for expert, task in tasks.items()}
    missing = {expert: path for expert, path in paths.items() if not (path.exists() and checksum_holds(path))}
    if missing:
        total = sum(min(ITEMS, len(items[tasks[expert]])) for expert in missing)
        with tqdm(total=total, unit="item", desc="calibrate", file=sys.stderr) as bar:
            for expert, path in missing.items():
                grams, transposed = statistics(spec, family, tasks[expert], items[tasks[expert]], bar)
                write_calibration(path, grams, transposed)
    return {expert: Calibration(path) for expert, path in paths.items()}


def _name(family: Family, expert: str, items: Items) -> str:
    """A file's name that says what its content depends on."""
    seen = [items.keys[:ITEMS], items.digest, ITEMS, family.fingerprints[expert], sorted(family.alignment.shared)]
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=16).hexdigest() + ".safetensors"


@torch.inference_mode()
def statistics(
    spec: Spec, family: Family, task: str, items: Items, bar: tqdm[Any] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Run a task's expert over its first items.

    Returns:
        XᵀX of every linear layer whose weight is shared, by the weight's shared name, float32, [in, in]; and the names
        of weights that are stored as [in, out].

    """
    expert, device = spec.expert_of(task), torch.device(pick_device(spec.device))
    model = load_model(family, expert, spec.tasks[task].kind, {}, torch.float32, device)
    layers = _linear_layers(model, family, expert)
    grams = {name: torch.zeros(_inputs(layer), _inputs(layer), dtype=torch.float64) for name, layer in layers.items()}
    present = torch.ones(1)

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            if seen.shape[0] == present.numel():  # one row a token, else one an item, as a pooler has
                seen = seen[present]
            grams[name] += (seen.T @ seen).double().cpu()

        return hook

    rows = np.arange(min(ITEMS, len(items)), dtype=np.int64)
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(watch(name)).remove)
        for batch in batches(items.lengths[rows]):
            inputs = {k: v.to(device) for k, v in collate(items, rows[batch]).items()}
            present = inputs["attention_mask"].reshape(-1).bool()
            model(**inputs)
            if bar is not None:
                bar.update(len(batch))
    return {n: g.float() for n, g in grams.items()}, [n for n, layer in layers.items() if _is_transposed(layer)]


def _linear_layers(model: Any, family: Family, expert: str) -> dict[str, Any]:
    """Linear layers whose weight is a shared tensor, by the tensor's name."""
    checkpoint = family.experts[expert]
    modules = {f"{path}.weight": module for path, module in model.named_modules() if _is_linear(module)}
    names = {checkpoint.model_name(name): name for name in family.alignment.shared}
    return {names[in_model]: module for in_model, module in modules.items() if in_model in names}


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or _is_transposed(module)


def _is_transposed(module: Any) -> bool:
    """GPT-2's layers keep their weights as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _inputs(layer: Any) -> int:
    return int(layer.weight.shape[0] if _is_transposed(layer) else layer.weight.shape[1])
