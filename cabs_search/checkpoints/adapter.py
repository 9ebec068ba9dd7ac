"""LoRA adapters as experts: folders as PEFT saves them, expanded tensor by tensor in float32.

A tensor of such an expert is the base's, or the base's with a low-rank update, or stored whole
(modules of ``modules_to_save`` such as a head, and biases that were tuned).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cabs_search.checkpoints.adapter_settings import FILE, AdapterSettings
from cabs_search.checkpoints.checkpoint import WEIGHTS, Checkpoint, renamed
from cabs_search.checkpoints.json_files import read_config
from cabs_search.checkpoints.low_rank import BIAS, EMBEDDING, LAYER, MAGNITUDE, LowRank, sort_names
from cabs_search.common.formats import digest

FILES = ("adapter_model.safetensors", "adapter_model.bin")
OUTPUT = "lm_head"
"""Output layer of a language model; a base whose embeddings are tied to it need not store it."""
EMBEDDINGS = r"(embed_tokens|wte|embed_in|word_embeddings)$"
"""Token embeddings of a language model."""


class Adapter:
    """An expert that is the base with a LoRA adapter; it reads as a checkpoint does."""

    def __init__(self, folder: str | Path, *, base: Checkpoint, pickled: bool = False) -> None:
        """Open the adapter in ``folder``, its tensors under the names of ``base``.

        ``pickled``: as of ``Checkpoint``.

        Raises:
            ValueError: the adapter cannot be read, is of a kind that is refused, or does not fit
                to the base.

        """
        self.folder, self._base = Path(folder), base
        if any((self.folder / file).is_file() for file in WEIGHTS):
            raise ValueError(f"{folder}: must hold an adapter or a whole model, but holds both")
        self._settings = AdapterSettings.read(self.folder)
        self._file = Checkpoint(self.folder, files=FILES, pickled=pickled)
        modules, whole = sort_names(self._file)
        self._settings.check_patterns(self.folder / FILE, list(modules))
        self._drop_tied_output(modules, whole)
        # The adapted model may have a prefix more than the base, or one less.
        tuned = [*whole, *(f"{module}.weight" for module in modules)]
        in_model = renamed({name: name for name in tuned}, base)
        in_base = {model: name for name, model in in_model.items()}
        self._whole = {in_base[name]: key for name, key in whole.items()}
        self._low_rank: dict[str, LowRank] = {}
        self._biases: dict[str, LowRank] = {}
        for module, parts in modules.items():
            update = LowRank.of(self._file, module, parts, self._settings)
            self._add(in_base[f"{module}.weight"], update)
        self._check_whole()
        self._in_model = self._names_in_model(in_model)

    def _drop_tied_output(self, modules: dict[str, dict[str, str]], whole: dict[str, str]) -> None:
        """Drop an output layer that is tied to the embeddings, if it was tuned as one with them.

        Args:
            modules, whole: as ``sort_names`` returns them.

        Raises:
            ValueError: the two were tuned to be different, which a tied model cannot hold.

        """
        tuned = {*modules, *(name.removesuffix(".weight") for name in whole)}
        tied = [m for m in sorted(tuned) if m == OUTPUT or re.search(EMBEDDINGS, m)]
        if not tied or not self._base.is_tied or not self._settings.is_language_model:
            return
        stored = [self._stored(module, modules, whole) for module in tied]
        is_one = len(tied) == 2 and OUTPUT in tied and len(stored[0]) == len(stored[1])
        # DoRA scales rows of the one and columns of the other; only an output layer has a bias
        has_more = any({MAGNITUDE, BIAS} & modules.get(module, {}).keys() for module in tied)
        if not is_one or has_more or not all(map(torch.equal, *stored)):
            raise ValueError(
                f"{self.folder}: the base's output layer is tied to its embeddings, but the adapter"
                f" tunes them apart ({', '.join(tied)}), which a tied model cannot hold"
            )
        if f"{OUTPUT}.weight" not in self._base.names:
            modules.pop(OUTPUT, None)
            whole.pop(f"{OUTPUT}.weight", None)

    def _stored(
        self, module: str, modules: Mapping[str, Mapping[str, str]], whole: Mapping[str, str]
    ) -> list[Tensor]:
        """Return what the file has of a module; parts of embeddings are transposed, to compare."""
        parts = modules.get(module, {})
        stored = [self._file.read(parts[part]) for part in LAYER if part in parts]
        stored += [self._file.read(parts[part]).T for part in EMBEDDING[::-1] if part in parts]
        name = f"{module}.weight"
        return [*stored, self._file.read(whole[name])] if name in whole else stored

    def _add(self, name: str, update: LowRank) -> None:
        """Take in an update; raise ValueError if the base's tensor ``name`` cannot have it."""
        self._check_in_base(name, update)
        if not update.fits(self._base.shape(name)):
            raise ValueError(
                f"{self.folder}: {update.module} has an update of shape {update.shape}, but"
                f" {name} of the base is {self._base.shape(name)}{self._made_for}"
            )
        self._low_rank[name] = update
        if update.bias:
            bias = f"{name.removesuffix('weight')}bias"
            self._check_in_base(bias, update)
            self._biases[bias] = update

    def _check_in_base(self, name: str, update: LowRank) -> None:
        if name not in self._base.names or not self._base.is_float(name):
            raise ValueError(
                f"{self.folder}: {update.module} has an update, but {self._base.folder} has no"
                f" floating-point {name}{self._made_for}"
            )

    def _check_whole(self) -> None:
        """Check that whole tensors replace the base's, or are of modules in ``modules_to_save``."""
        for name, key in self._whole.items():
            if name not in self._base.names and not self._settings.is_saved_whole(key):
                raise ValueError(
                    f"{self.folder}: {key} must be a tensor of {self._base.folder}, or of a module"
                    f" in modules_to_save, but is neither{self._made_for}"
                )

    @property
    def _made_for(self) -> str:
        """End of an error: the base that the adapter was made for."""
        name = self._settings.base_name
        return f"; {FILE} says that the adapter was tuned from {name}" if name else ""

    def _names_in_model(self, tuned: Mapping[str, str]) -> dict[str, str]:
        """Return the names in the adapted model of all its tensors, by the base's.

        Args:
            tuned: those of tensors that the adapter changes.

        """
        name = next(iter(self._low_rank))
        added = tuned[name].removesuffix(name) if tuned[name].endswith(name) else ""
        dropped = name.removesuffix(tuned[name]) if name.endswith(tuned[name]) else ""
        mine = [n for n in self._base.names if n.startswith(dropped)]
        names = {n: added + n.removeprefix(dropped) for n in mine}
        # A model with a head of its own has none of the base's, such as a language model's.
        if any(n not in self._base.names for n in self._whole):
            names = {n: in_model for n, in_model in names.items() if self._is_trunk(in_model)}
        return names | {n: tuned[n] for n in self._whole}

    def _is_trunk(self, in_model: str) -> bool:
        """Tell whether a tensor of the adapted model is in the trunk, where the updates are."""
        first = in_model.split(".", 1)[0] + "."
        return any(update.module.startswith(first) for update in self._low_rank.values())

    @cached_property
    def config(self) -> dict[str, Any]:
        """Configuration of the adapted model.

        The folder's own ``config.json``, else the base's; with the class of the adapted model and
        the number of the head's outputs. Where the number is another one, classes get default
        names.
        """
        own = self.folder / "config.json"
        most = len(self._base.names)
        config = dict(read_config(own, most) if own.is_file() else self._base.config)
        if not self._settings.head:
            return config
        stem = re.sub(r"(LMHeadModel|Model|For\w+)$", "", (config.get("architectures") or [""])[0])
        config["architectures"] = [stem + self._settings.head] if stem else []
        head = [self.shape(n) for n in self._whole if not self._is_trunk(self.model_name(n))]
        labels = min((shape[0] for shape in head if len(shape) == 2), default=0)
        if labels and labels != len(config.get("id2label") or ()):
            config.pop("num_labels", None)
            config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
            config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
        return config

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._in_model)

    @property
    def is_pickled(self) -> bool:
        """True if the adapter is in a pickled file."""
        return self._file.is_pickled

    def model_name(self, name: str) -> str:
        """Return this tensor's name in the loaded model's ``state_dict``."""
        return self._in_model[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, read from the headers."""
        key = self._whole.get(name)
        return self._base.shape(name) if key is None else self._file.shape(key)

    @property
    def constants(self) -> frozenset[str]:
        """See ``Checkpoint``."""
        return self._base.constants

    @property
    def repeated(self) -> frozenset[str]:
        """See ``Checkpoint``; what is tied in the base is tuned as one, or refused."""
        return self._base.repeated

    def is_float(self, name: str) -> bool:
        """Tell whether a tensor is floating-point, without computing it."""
        key = self._whole.get(name)
        return self._base.is_float(name) if key is None else self._file.is_float(key)

    def check_current(self) -> None:
        """See ``Checkpoint``; the base is checked by itself."""
        self._file.check_current()

    def read(self, name: str) -> Tensor:
        """Read one tensor: as stored, or in float32 the base's with its update."""
        if (update := self.update(name)) is not None:
            return self._base.read(name).float() + update
        return self._start(name)

    def update(self, name: str) -> Tensor | None:
        """Compute the difference to the base's tensor in float32; None for one without update.

        A difference of rounded sums would have fewer digits.
        """
        if low_rank := self._low_rank.get(name):
            start = self._start(name)
            update = low_rank.update(self._file, start, is_transposed=self.is_transposed(name))
        elif (biased := self._biases.get(name)) and biased.bias:
            update = biased.scale * self._file.read(biased.bias).float()
        else:
            return None
        if name in self._whole:  # beside its update, as PEFT stores embeddings
            update += self._start(name).float() - self._base.read(name).float()
        return update

    @property
    def low_rank(self) -> frozenset[str]:
        """Weights with a low-rank update."""
        return frozenset(self._low_rank)

    @property
    def whole(self) -> frozenset[str]:
        """Tensors that the adapter stores whole."""
        return frozenset(self._whole)

    @property
    def biases(self) -> frozenset[str]:
        """Biases that were tuned, but for those of modules that are stored whole."""
        alone = {n for n in self._whole if f"{n.removesuffix('bias')}weight" not in self._whole}
        return frozenset(self._biases).union(n for n in alone if n.endswith("bias"))

    def is_embedding(self, name: str) -> bool:
        """Tell whether a weight with a low-rank update is one of embeddings."""
        return self._low_rank[name].is_embedding

    def is_transposed(self, name: str) -> bool:
        """Tell whether a weight with a low-rank update is stored as the transpose of [out, in]."""
        low_rank = self._low_rank[name]
        is_square = low_rank.shape[0] == low_rank.shape[1]
        if low_rank.is_embedding or is_square:
            return low_rank.is_embedding or self._has_inputs_first
        return self.shape(name) != low_rank.shape

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return two float32 matrices whose product is a weight's update.

        Returns:
            [out, rank], which has the scale, and [rank, in]; None for an update that is no product,
            such as DoRA's.

        """
        low_rank = self._low_rank[name]
        if low_rank.magnitude is not None or name in self._whole:
            return None
        b, a = (self._file.read(part).float() for part in (low_rank.b, low_rank.a))
        return low_rank.scale * b, a

    def _start(self, name: str) -> Tensor:
        """Return a tensor without its update."""
        key = self._whole.get(name)
        return self._base.read(name) if key is None else self._file.read(key)

    @cached_property
    def _has_inputs_first(self) -> bool:
        """True if layers store [in, out], as GPT-2's do.

        Shapes tell; the settings count where all matrices are square.
        """
        layers = {n: u for n, u in self._low_rank.items() if not u.is_embedding}
        telling = [n for n, u in layers.items() if u.shape[0] != u.shape[1]]
        if not telling:
            return self._settings.is_transposed
        return any(self._base.shape(n) != layers[n].shape for n in telling)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base and of everything that makes the expert of it.

        Raises:
            ValueError: a weight is not finite.

        """
        seen = self._base.fingerprint, self._file.fingerprint, self._has_inputs_first
        return digest(f"{seen} {sorted(self._low_rank.items())}", 16)


Expert: TypeAlias = Checkpoint | Adapter
"""A whole model, or the base with an adapter."""


def open_expert(folder: str | Path, base: Checkpoint, *, pickled: bool = False) -> Expert:
    """Open an expert under the base's names: an adapter if the folder holds one, else a model.

    ``pickled``: as of ``Checkpoint``.

    Raises:
        ValueError: it cannot be read, or is an adapter that does not fit to the base.

    """
    if is_adapter(folder):
        return Adapter(folder, base=base, pickled=pickled)
    try:
        return Checkpoint(folder, base=base, pickled=pickled)
    except ValueError as error:
        if any((Path(folder) / file).is_file() for file in FILES):
            raise ValueError(f"{folder}: holds the weights of an adapter, but no {FILE}") from error
        raise


def is_adapter(folder: str | Path) -> bool:
    """Tell whether a folder holds an adapter."""
    return (Path(folder) / FILE).is_file()
