"""Stacks: models made of layers of the base, of experts and of their merge, one after another.

Data-flow merging of arXiv 2403.13187, section 3.2; mergekit's ``passthrough``. A layer may stand in
a stack several times, and any may be missing. Tensors outside all layers are those of the merge.

A slot's scale multiplies what its layer adds to the hidden state: the outputs of the last linear
module of attention and of MLP. It is exact in a checkpoint, as these modules' weights and biases
times the scale, whether norms stand before them or behind. The paper scales the layer's input x by
W instead. Where norms stand before the modules, x·W + f(norm(x·W)) = W·(x + f(norm(x))/W): that is
a scale of 1/W for this layer and all behind it, and a factor that the last norm takes away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from cabs_search.merging.layers import LAYER, MOST_LAYERS, layer_of

if TYPE_CHECKING:
    from torch import Tensor

MERGED = "merged"
"""Name that the merge of all experts has in a stack, beside the base's and the experts'."""
MOST_SCALE = 1e3
"""Largest |scale| of a slot."""
BRANCH_ENDS = (
    ("attention.output.dense", "output.dense"),  # BERT, RoBERTa, ELECTRA, DeBERTa
    ("attention.out_lin", "ffn.lin2"),  # DistilBERT
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2
    ("self_attn.o_proj", "mlp.down_proj"),  # Llama, Mistral, Qwen, Gemma 1, Phi-3
    ("self_attn.dense", "mlp.fc2"),  # Phi
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX
    ("self_attn.out_proj", "fc2"),  # OPT
)
"""Modules of a layer whose outputs are added to the hidden state, by architecture."""
NORMS_BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""Norms between such a module and the sum, which would undo a scale: Gemma 2 and 3, OLMo 2, GLM-4.
"""


class Slot(NamedTuple):
    """One layer of a stack."""

    source: str
    """Model that the layer is taken from: the base, an expert, or ``MERGED``."""
    layer: int
    """Number of the layer there, from 0."""
    scale: float = 1.0
    """Factor of what the layer adds to the hidden state."""


Stack: TypeAlias = tuple[Slot, ...]
"""Layers from the first to the last; empty: all layers of the merge."""
Read: TypeAlias = "Callable[[str, str], Tensor]"
"""Reads a tensor of a model, by the model's and the tensor's name."""


class Run(NamedTuple):
    """Layers of one source that follow one another there, with one scale."""

    source: str
    start: int
    end: int
    """Number behind the last layer's."""
    scale: float


def whole(source: str, layers: int) -> Stack:
    """Return all layers of one source."""
    return tuple(Slot(source, layer) for layer in range(layers))


def runs_of(stack: Stack) -> list[Run]:
    """Return a stack as few runs of layers."""
    runs: list[Run] = []
    for source, layer, scale in stack:
        last = runs[-1] if runs else None
        if last and (last.source, last.end, last.scale) == (source, layer, scale):
            runs[-1] = last._replace(end=layer + 1)
        else:
            runs.append(Run(source, layer, layer + 1, scale))
    return runs


def stack_text(stack: Stack) -> str:
    """Write a stack in words, such as ``mrpc 0-3, rte 2-5 ×0.9``; both layers are in it."""
    texts = []
    for source, start, end, scale in runs_of(stack):
        layers = f"{start}" if end == start + 1 else f"{start}-{end - 1}"
        texts.append(f"{source} {layers}" + (f" ×{scale:g}" if scale != 1 else ""))
    return ", ".join(texts)


def stack_as_plain(stack: Stack) -> list[dict[str, Any]]:
    """Return plain JSON values, from which ``parse_stack`` makes an equal stack."""
    return [
        {"model": source, "layer_range": [start, end]} | ({"scale": scale} if scale != 1 else {})
        for source, start, end, scale in runs_of(stack)
    ]


def parse_stack(values: Any, experts: Collection[str], base: str) -> Stack:
    """Make a stack of plain values: a list of ``{model, layer_range: [START, END], scale}``.

    Args:
        values: the list.
        experts: names of models that layers may be taken from, beside ``base`` and ``MERGED``.
        base: the base's name.

    Raises:
        ValueError: a field is missing, unknown or wrong.

    """
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"stack: a list of layers is needed, but got {values!r:.100}")
    if MERGED in experts:
        raise ValueError(f"stack: an expert must have another name than {MERGED}, the merge's")
    slots: list[Slot] = []
    for place, one in enumerate(values):
        where = f"stack[{place}]"
        if not isinstance(one, Mapping) or not {"model", "layer_range"} <= one.keys():
            raise ValueError(f"{where}: model and layer_range are needed, but got {one!r:.100}")
        if unknown := [key for key in one if key not in ("model", "layer_range", "scale")]:
            raise ValueError(f"{where}.{unknown[0]}: no such field")
        source, scale = one["model"], one.get("scale", 1.0)
        known = (base, *experts, MERGED)
        if source not in known:
            raise ValueError(f"{where}.model: must be one of {', '.join(known)}, but got {source}")
        layers = layer_range(where, one["layer_range"])
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise ValueError(f"{where}.scale: a number is needed, but got {scale!r:.100}")
        if not abs(scale) <= MOST_SCALE:
            raise ValueError(
                f"{where}.scale: -{MOST_SCALE:g} <= scale <= {MOST_SCALE:g} must hold, but got"
                f" {scale!s:.20}"
            )
        slots += [Slot(str(source), layer, float(scale)) for layer in layers]
        check_slots(slots)
    return tuple(slots)


def layer_range(where: str, value: Any) -> range:
    """Read ``[START, END]``. Raises ValueError, which begins with ``where``, if it is none."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not (is_pair and all(type(number) is int for number in value)):
        raise ValueError(f"{where}.layer_range: [START, END] is needed, but got {value!r:.100}")
    start, end = value
    if not 0 <= start < end <= MOST_LAYERS:
        raise ValueError(
            f"{where}.layer_range: 0 <= start < end <= {MOST_LAYERS} must hold, but got {value}"
        )
    return range(start, end)


def check_slots(slots: Sequence[Slot]) -> None:
    """Raise ValueError if a stack has too many layers, or a scale is too large or not finite."""
    if len(slots) > MOST_LAYERS:
        raise ValueError(f"stack: {MOST_LAYERS} layers at most, but got {len(slots)}")
    for slot in slots:
        if not abs(slot.scale) <= MOST_SCALE:
            raise ValueError(
                f"stack: -{MOST_SCALE:g} <= scale <= {MOST_SCALE:g} must hold, but got"
                f" {slot.scale:g} of layer {slot.layer} of {slot.source}"
            )


def renumbered(tensor: str, layer: int) -> str:
    """Return a tensor's name in another layer."""
    match = LAYER.match(tensor)
    assert match is not None, "a tensor in a layer"
    return f"{tensor[: match.start('number')]}{layer}{tensor[match.end('number') :]}"


@dataclass(frozen=True)
class Layout:
    """Layers of a model, by its tensors' names."""

    prefix: str
    """Name of the list of layers, such as ``encoder.layer``."""
    count: int
    rests: tuple[str, ...]
    """Names of a layer's tensors within the layer, the same of every layer, sorted."""

    @classmethod
    def of(cls, tensors: Iterable[str]) -> Layout:
        """Find the layers.

        Raises:
            ValueError: there are none, or several lists of them, or layers with other tensors than
                the first, which cannot take each other's place.

        """
        by_layer: dict[tuple[str, int], set[str]] = {}
        for tensor in tensors:
            if match := LAYER.match(tensor):
                own = by_layer.setdefault((match["stack"], int(match["number"])), set())
                own.add(tensor[match.end("number") + 1 :])
        prefixes = sorted({prefix for prefix, _ in by_layer})
        if len(prefixes) != 1:
            found = ", ".join(prefixes) or "none"
            raise ValueError(f"stack: the model must have one list of layers, but has {found}")
        count, first = len(by_layer), by_layer.get((prefixes[0], 0), set())
        for layer in range(count):
            other = by_layer.get((prefixes[0], layer), set())
            if odd := sorted(other ^ first):
                raise ValueError(
                    f"stack: all layers must have the same tensors, but layers 0 and {layer}"
                    f" differ in {odd[0]}"
                )
        return cls(prefixes[0], count, tuple(sorted(first)))

    @property
    def branch_ends(self) -> tuple[str, ...]:
        """Names, within a layer, of the modules whose outputs are added to the hidden state.

        Raises:
            ValueError: they are not known, or a norm stands behind them.

        """
        modules = {rest.rpartition(".")[0] for rest in self.rests}
        if behind := sorted(modules & set(NORMS_BEHIND)):
            raise ValueError(f"scale: the norm {behind[0]} behind a layer's modules would undo it")
        for ends in BRANCH_ENDS:
            if modules.issuperset(ends):
                return ends
        raise ValueError(f"scale: not known for layers with {', '.join(sorted(modules))}")

    def check(self, stack: Stack) -> None:
        """Raise ValueError if a stack has layers that the model has not, or scales not known."""
        for slot in stack:
            if not 0 <= slot.layer < self.count:
                raise ValueError(
                    f"stack: the model has layers 0 to {self.count - 1}, but got {slot.layer} of"
                    f" {slot.source}"
                )
        if any(slot.scale != 1 for slot in stack):
            _ = self.branch_ends

    def name(self, layer: int, rest: str) -> str:
        """Return the name of a tensor."""
        return f"{self.prefix}.{layer}.{rest}"

    def scales(self, rest: str) -> bool:
        """Tell whether a slot's scale multiplies a tensor of its layer."""
        return rest.rpartition(".")[0] in self.branch_ends


def stacked_names(shared: Iterable[str], stack: Stack) -> dict[str, str]:
    """Return the names of a stack's tensors, each with the name that it has in its source.

    They are in the order of ``stacked_tensors``. Without a stack, names are what they are.
    """
    names: dict[str, str] = {}
    for tensor in shared:
        layer = layer_of(tensor) if stack else None
        if layer is None:
            names[tensor] = tensor
        else:
            places = (place for place, slot in enumerate(stack) if slot.layer == layer)
            names |= {renumbered(tensor, place): tensor for place in places}
    return names


def stacked_tensors(
    merged: Iterable[tuple[str, Tensor]], stack: Stack, layout: Layout, read: Read
) -> Iterator[tuple[str, Tensor]]:
    """Put the layers of a stack in the place of a merge's, one tensor at a time.

    Args:
        merged: names and tensors of the merge.
        stack: the layers, one at the least.
        layout: the model's layers.
        read: gives a tensor of the base or an expert, by the model's and the tensor's name.

    Yields:
        (name, tensor), of the dtype of the merge's tensor.

    """
    for name, tensor in merged:
        layer = layer_of(name)
        if layer is None:
            yield name, tensor
            continue
        rest = name.removeprefix(f"{layout.prefix}.{layer}.")
        for place, slot in enumerate(stack):
            if slot.layer != layer:
                continue
            own = tensor if slot.source == MERGED else read(slot.source, name)
            if slot.scale != 1 and layout.scales(rest):
                own = own.float() * slot.scale
            yield layout.name(place, rest), own.to(tensor.dtype)


def per_layer_fields(config: Mapping[str, Any], layers: int) -> list[str]:
    """Return the fields of a config that have a value for each layer, such as ``layer_types``."""
    return [
        name
        for name, value in config.items()
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == layers
    ]
