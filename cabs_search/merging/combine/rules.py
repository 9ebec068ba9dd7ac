"""The combine rules that there are."""

from __future__ import annotations

from cabs_search.merging.combine.plain_sum import Sum
from cabs_search.merging.combine.rule import CombineRule
from cabs_search.merging.combine.ties import Ties, TiesSum

COMBINES: dict[str, type[CombineRule]] = {rule.name: rule for rule in (Sum, Ties, TiesSum)}
"""Rules by name."""
