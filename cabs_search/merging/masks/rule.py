"""A mask rule: a frozen value with its settings that selects weights of one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cabs_search.merging.calibration import Calibration
    from cabs_search.merging.task_vector import Delta

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Statistic: TypeAlias = Literal["none", "diagonal", "gram", "fisher"]
"""XᵀX of linear layers' inputs, or its diagonal; or the diagonal of the Fisher information."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorView:
    """One tensor of one task vector, as a mask rule sees it."""

    tensor: str
    """Name of the tensor."""
    expert: str
    """Name of the expert."""
    delta: Delta
    """τ of the tensor."""
    taken: Bools | None = None
    """Positions that earlier vectors keep, [weights]; None: none, or a rule without an order."""
    survey: Any = None
    """Result of the rule's ``survey`` of the whole vector."""
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """Statistics on calibration items by expert, for rules that need them."""
    vectors: Mapping[str, Mapping[str, Delta]] = field(default_factory=dict)
    """τ of all experts, by expert and tensor, for rules that compare them."""

    @cached_property
    def tau(self) -> Floats:
        """τ in the tensor's shape."""
        values: Floats = self.delta.whole().numpy()
        return values

    @property
    def weights(self) -> Floats:
        """τ in row-major order, [weights]."""
        return self.tau.reshape(-1)


@dataclass(frozen=True, eq=False)
class Selection:
    """Weights that a rule keeps of one tensor."""

    values: Floats
    """Values of the kept weights, [kept]."""
    mask: Bools | None
    """Positions kept, [weights]; None: all."""


class MaskRule:
    """Base of mask rules. A rule is a frozen dataclass; its fields are declared by ``setting``."""

    name: ClassVar[str]
    """Name in a spec and on the command line."""
    calibration: ClassVar[Statistic] = "none"
    """Statistics on calibration items that the rule needs."""
    elsewhere: ClassVar[str] = "pruned by magnitude"
    """Treatment of tensors without statistics, by a rule that needs some: they are so and so."""

    sees_all: ClassVar[bool] = False
    """True if what is kept of a vector depends on all others."""
    is_compared: ClassVar[bool] = True
    """False if ``compare --over method`` runs it with combine rules only, that need it."""

    def alike(self, expert: str) -> MaskRule:  # noqa: ARG002
        """Return the rule that prunes one expert's vector just so: another one where ``self``
        only says with which settings.
        """
        return self

    def survey(self, expert: str, vector: Mapping[str, Delta]) -> Any:  # noqa: ARG002
        """Look over an expert's whole vector (τ by tensor) before it is pruned, if the rule
        needs to.
        """
        return None

    def select(self, view: TensorView) -> Selection:
        """Select the weights of one tensor that are kept; never one that is exactly 0."""
        raise NotImplementedError


class JointRule(MaskRule):
    """Base of rules that prune the vectors of a tensor together."""

    sees_all: ClassVar[bool] = True

    def select_all(self, views: Sequence[TensorView]) -> list[Selection]:
        """Select the weights of one tensor that each vector keeps; never one that is exactly 0."""
        raise NotImplementedError
