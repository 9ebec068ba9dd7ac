"""A base with its experts, opened and checked against one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from cabs_search.checkpoints.alignment import Alignment, align
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.calibration import Calibration
from cabs_search.merging.masks.prune import Survey, keep, survey_of
from cabs_search.merging.masks.rules import Mask
from cabs_search.merging.sparse import Kept
from cabs_search.merging.task_vector import Delta, task_vector


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base and the experts tuned from it, opened and checked against one another."""

    base: Checkpoint
    experts: Mapping[str, Checkpoint]
    alignment: Alignment
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """What experts' layers saw on calibration items, for the rules that need it."""

    @classmethod
    def open(cls, base: str | Path, experts: Mapping[str, str | Path]) -> Family:
        """Open folders. Raises ValueError where one cannot be read or is of another architecture or
        shape.
        """
        opened = Checkpoint(base)
        tuned = {name: Checkpoint(path, base=opened) for name, path in experts.items()}
        return cls(base=opened, experts=tuned, alignment=align(opened, tuned))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The experts' content hashes."""
        return {name: expert.fingerprint for name, expert in self.experts.items()}

    def prune(
        self,
        mask: Mask,
        tensor: str,
        survey: Survey,
        known: Mapping[str, Kept | None] | None = None,
    ) -> Iterator[tuple[str, Kept | None]]:
        """What a rule keeps of one tensor, by expert in pruning order; ``known`` vectors are not
        pruned again.
        """

        def delta(expert: str) -> Delta:
            return task_vector(self.base, self.experts[expert], tensor)

        return keep(mask, tensor, delta, tuple(self.experts), known=known, survey=survey)

    def survey(self, mask: Mask, experts: Iterable[str] | None = None) -> Survey:
        """What a rule must know of whole vectors before it prunes them; ``experts``: whose, None
        for all.
        """
        sizes = {tensor: self.numel(tensor) for tensor in self.alignment.shared}
        return survey_of(mask, tuple(experts or self.experts), sizes, self.delta, self.calibrations)

    def delta(self, tensor: str, expert: str) -> Tensor:
        """One expert's task vector on one tensor."""
        return task_vector(self.base, self.experts[expert], tensor).whole()

    def numel(self, tensor: str) -> int:
        """A shared tensor's number of weights."""
        return math.prod(self.alignment.shapes[tensor])
