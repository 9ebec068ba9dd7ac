"""Layers of resident models in the order of a stack, without a second copy of any tensor.

Each slot is a module of its own that shares its parameters: with the resident model, or with the
layer of the base or an expert as it is on disk, which is held once for all slots and models. So a
layer that stands in a stack twice has keys and values of its own at each place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cabs_search.merging.family import Family
from cabs_search.merging.stack import MERGED, Layout, Slot, Stack, per_layer_fields

COUNT = "num_hidden_layers"
"""Field of a loaded config with the number of layers, whatever ``config.json`` calls it."""

PLACE = "layer_idx"
"""Attribute of a layer's modules with its number, under which its keys and values are cached."""


@dataclass(frozen=True, eq=False)
class _Home:
    """A model's list of layers, and where it stands."""

    config: Any
    parent: nn.Module
    name: str
    layers: nn.ModuleList
    fields: dict[str, Any]
    """The config's number of layers, and its fields with a value for each."""


class StackedLayers:
    """Layers of models that can be replaced by those of a stack, and put back."""

    def __init__(
        self, family: Family, models: Iterable[Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Prepare; no tensor is read before a stack needs it.

        Args:
            family: the base and its experts.
            models: models whose layers share the merge's tensors.
            dtype: of the models.
            device: of the models.

        """
        self._family, self._dtype, self._device = family, dtype, device
        self._models = list(models)
        self._homes: list[_Home] = []
        self._layout: Layout | None = None
        self._parameters: dict[tuple[str, str], nn.Parameter] = {}
        """Tensors of base and experts by model and name."""

    def become(self, stack: Stack) -> None:
        """Put a stack's layers in the models' places; the empty one: their own layers.

        Raises:
            ValueError: the models' layers cannot be stacked so.

        """
        if not stack:
            self._put_back()
            return
        if self._layout is None:
            layout = self._family.layout
            self._homes = [_home(model, layout) for model in self._models]
            self._layout = layout
        self._layout.check(stack)
        for home in self._homes:
            modules = [self._module(home, place, slot) for place, slot in enumerate(stack)]
            setattr(home.parent, home.name, nn.ModuleList(modules))
            for field, values in home.fields.items():
                is_count = field == COUNT
                new = len(stack) if is_count else [values[slot.layer] for slot in stack]
                setattr(home.config, field, new)

    def _put_back(self) -> None:
        for home in self._homes:
            setattr(home.parent, home.name, home.layers)
            for field, value in home.fields.items():
                setattr(home.config, field, value)

    def _module(self, home: _Home, place: int, slot: Slot) -> nn.Module:
        """Return a layer's module for one place of a stack."""
        assert self._layout is not None, "laid out"
        layer = home.layers[slot.layer]
        # what deepcopy finds in memo it does not copy: tensors and configs are shared
        memo: dict[int, Any] = {id(buffer): buffer for buffer in layer.buffers()}
        for rest, own in layer.named_parameters():
            memo[id(own)] = own
            if slot.source != MERGED and rest in self._layout.rests:
                memo[id(own)] = self._parameter(slot.source, self._layout.name(slot.layer, rest))
        for module in layer.modules():
            config = getattr(module, "config", None)
            memo[id(config)] = config
        twin = copy.deepcopy(layer, memo)
        for module in twin.modules():
            if hasattr(module, PLACE):
                setattr(module, PLACE, place)
        if slot.scale != 1:
            for end in self._layout.branch_ends:
                twin.get_submodule(end).register_forward_hook(_Scale(slot.scale))
        return twin

    def _parameter(self, model: str, tensor: str) -> nn.Parameter:
        """Return a tensor of the base or an expert, read once."""
        if (model, tensor) not in self._parameters:
            values = self._family.read(model, tensor).to(self._device, self._dtype)
            self._parameters[model, tensor] = nn.Parameter(values, requires_grad=False)
        return self._parameters[model, tensor]


class _Scale:
    """Forward hook that multiplies a module's output."""

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * self._scale


def _home(model: Any, layout: Layout) -> _Home:
    """Find a model's list of layers. Raises ValueError unless there is one."""
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == layout.count
        and (f".{path}".endswith(f".{layout.prefix}") or f".{layout.prefix}".endswith(f".{path}"))
    ]
    if len(found) != 1 or getattr(model.config, COUNT, None) != layout.count:
        raise ValueError(
            f"stack: {type(model).__name__} must have one list of {layout.count} layers, called"
            f" {layout.prefix}"
        )
    parent, _, name = found[0].rpartition(".")
    fields = per_layer_fields(model.config.to_dict(), layout.count)
    kept = {field: getattr(model.config, field) for field in [COUNT, *fields]}
    home = model.get_submodule(parent)
    return _Home(model.config, home, name, getattr(home, name), kept)
