"""The combine rules that there are."""

from __future__ import annotations

from cabs_search.merging.combine.plain_sum import Sum
from cabs_search.merging.combine.ram import Ram, RamPlus
from cabs_search.merging.combine.rule import CombineRule
from cabs_search.merging.combine.sce import Sce
from cabs_search.merging.combine.ties import Ties, TiesSum

RULES: tuple[type[CombineRule], ...] = (Sum, Ties, TiesSum, Sce, Ram, RamPlus)
"""Every rule, in the order in which comparisons list them."""
COMBINES = {rule.name: rule for rule in RULES}
"""Rules by name."""
