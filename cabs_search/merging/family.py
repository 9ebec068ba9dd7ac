"""A base with the experts tuned from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from cabs_search.checkpoints.adapter import Expert, open_expert
from cabs_search.checkpoints.alignment import Alignment, align
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.checkpoints.json_files import LAYERS
from cabs_search.checkpoints.origin import origin_note
from cabs_search.checkpoints.vocabulary import SAME
from cabs_search.merging.calibration import Calibration, CalibrationKey
from cabs_search.merging.chunks import parallel_map
from cabs_search.merging.masks.prune import prune
from cabs_search.merging.masks.rule import MaskRule
from cabs_search.merging.recipe import BASE
from cabs_search.merging.sparse import Kept
from cabs_search.merging.stack import Layout
from cabs_search.merging.task_vector import TaskVector


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base and its experts, opened and checked against one another."""

    base: Checkpoint
    experts: Mapping[str, Expert]
    alignment: Alignment
    calibrations: Mapping[CalibrationKey, Calibration] = field(default_factory=dict)
    """Statistics of experts on calibration items, for the rules that need them."""

    @classmethod
    def open(
        cls,
        base: str | Path,
        experts: Mapping[str, str | Path],
        vocabulary: str = SAME,
        pickled: Collection[str] = (),
    ) -> Family:
        """Open folders.

        Args:
            base: the base's folder.
            experts: folders by name.
            vocabulary: as of ``alignment.align``.
            pickled: names of experts, or ``BASE``, whose weights may be pickled.

        Raises:
            ValueError: one cannot be read or is of another architecture or shape.

        """
        try:
            opened = Checkpoint(base, pickled=BASE in pickled)
        except ValueError as error:
            raise ValueError(f"{BASE}: {error}") from error
        tuned: dict[str, Expert] = {}
        for name, path in experts.items():
            try:
                tuned[name] = open_expert(path, opened, pickled=name in pickled)
            except ValueError as error:
                raise ValueError(f"experts.{name}: {error}") from error
        return cls(base=opened, experts=tuned, alignment=align(opened, tuned, vocabulary))

    @property
    def notes(self) -> list[str]:
        """Sentences on what is not as usual in these models, for plans and model cards."""
        models = {"the base": self.base, **{f"expert {n}": e for n, e in self.experts.items()}}
        origins = (origin_note(who, model.folder) for who, model in models.items())
        return [note for note in origins if note] + [
            f"expert {name} has {own:,} rows of tokens: the first {common:,}, which the base has,"
            " too, are merged, and the base's others are kept"
            for name, (own, common) in self.alignment.common_rows.items()
        ]

    def checkpoint(self, name: str) -> Expert:
        """Return an expert, or the base by ``BASE``."""
        return self.base if name == BASE else self.experts[name]

    @cached_property
    def layout(self) -> Layout:
        """The layers, which may be stacked. Raises ValueError if they cannot be."""
        layout, config = Layout.of(self.alignment.shared), self.base.config
        for name in LAYERS:
            if config.get(name, layout.count) != layout.count:
                raise ValueError(
                    f"stack: each layer must have tensors of its own, but {name} is {config[name]}"
                    f" and there are tensors of {layout.count}"
                )
        return layout

    def read(self, model: str, tensor: str) -> Tensor:
        """Read a tensor of the base or an expert; ``model``: an expert's name, or ``BASE``."""
        return self.checkpoint(model).read(tensor)

    def check_current(self) -> None:
        """Check that all files of weights are as they were opened.

        Raises:
            ChangedFileError: one is not.

        """
        for model in (self.base, *self.experts.values()):
            model.check_current()

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Content hashes of the experts. Raises ValueError if a weight is not finite.

        Base and experts are hashed at the same time, over torch's number of threads.
        """
        parallel_map(self._hash, [BASE, *self.experts])
        return {name: expert.fingerprint for name, expert in self.experts.items()}

    def _hash(self, name: str) -> None:
        try:
            _ = self.checkpoint(name).fingerprint
        except ValueError as error:
            where = name if name == BASE else f"experts.{name}"
            raise ValueError(f"{where}: {error}") from error

    @cached_property
    def vectors(self) -> dict[str, TaskVector]:
        """Task vectors by expert."""
        shared, common = self.alignment.shared, self.alignment.common_rows
        rows = {name: common[name][1] if name in common else None for name in self.experts}
        return {n: TaskVector(self.base, e, shared, rows[n]) for n, e in self.experts.items()}

    def survey(self, mask: MaskRule, experts: Iterable[str] | None = None) -> dict[str, Any]:
        """Let a rule look over whole vectors before it prunes them; ``experts``: None for all."""
        chosen = self.experts if experts is None else experts
        return {expert: mask.survey(expert, self.vectors[expert]) for expert in chosen}

    def calibrations_for(self, mask: MaskRule) -> dict[str, Calibration]:
        """Return the statistics that a rule needs, by expert, as far as there are any."""
        chosen = "fisher" if mask.calibration == "fisher" else "layers"
        return {expert: one for (of, expert), one in self.calibrations.items() if of == chosen}

    def prune(
        self,
        mask: MaskRule,
        tensor: str,
        survey: Mapping[str, Any],
        pruned: Mapping[str, Kept | None] | None = None,
    ) -> Iterator[tuple[str, Kept | None]]:
        """Prune one tensor of every vector; ``survey`` as the method returned it, else as in
        ``prune``.
        """
        return prune(mask, tensor, self.vectors, survey, self.calibrations_for(mask), pruned or {})

    def delta(self, tensor: str, expert: str) -> Tensor:
        """Read one expert's task vector on one tensor."""
        return self.vectors[expert][tensor].whole()

    def numel(self, tensor: str) -> int:
        """Return a shared tensor's number of weights."""
        return math.prod(self.alignment.shapes[tensor])
