"""Groups of tensors with a λ of their own, from the tensors' names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cabs_search.merging.layers import LAYER
from cabs_search.merging.recipe import Groups
from cabs_search.spec.refine import Level

REST = "rest"
"""Group of the tensors outside all layers, such as embeddings."""


def groups_of(level: Level, tensors: Sequence[str], own: Groups = ()) -> Groups:
    """Return the groups of a level.

    Args:
        level: how fine they are.
        tensors: names of the merged tensors.
        own: the space's own groups.

    Raises:
        ValueError: the level is ``groups`` and the space has none, or no tensor is in a layer.

    """
    if level == "groups":
        if not own:
            raise ValueError(
                "search.refine.levels: groups must be in space.lambda.groups, but there are none"
            )
        return own
    if level == "expert":
        return ()
    if level == "tensor":
        return tuple((name, f"^{re.escape(name)}$") for name in tensors)
    found = [match for match in map(LAYER.match, tensors) if match]
    if not found:
        raise ValueError(
            f"search.refine.levels: {level} needs tensors in numbered layers, but these have none:"
            f" {', '.join(tensors[:3])}"
        )
    stacks = list(dict.fromkeys(match["stack"] for match in found))
    groups: dict[str, str] = {}
    for match in found:
        # a model with two stacks, such as encoder and decoder, has two layers of a number
        name = f"layer{match['number']}"
        name = name if len(stacks) == 1 else f"{match['stack']}.{match['number']}"
        start = f"{match['stack']}.{match['number']}"
        if level == "module":
            name, start = f"{name}.{match['module']}", f"{start}.{match['module']}"
        groups.setdefault(name, rf"^{re.escape(start)}(\.|$)")
    return (*groups.items(), *([(REST, "")] if len(found) < len(tensors) else []))
