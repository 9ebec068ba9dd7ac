"""The combine rules that there are."""

from __future__ import annotations

from cabs_search.merging.combine.iso_c import IsoC
from cabs_search.merging.combine.karcher import Karcher
from cabs_search.merging.combine.linear import Linear
from cabs_search.merging.combine.model_stock import ModelStock
from cabs_search.merging.combine.multi_slerp import MultiSlerp
from cabs_search.merging.combine.plain_sum import Sum
from cabs_search.merging.combine.ram import Ram, RamPlus
from cabs_search.merging.combine.rule import CombineRule
from cabs_search.merging.combine.sce import Sce
from cabs_search.merging.combine.slerp import NuSlerp, Slerp
from cabs_search.merging.combine.ties import Ties, TiesSum
from cabs_search.merging.combine.tsv import Tsv
from cabs_search.merging.combine.wudi import Wudi

RULES: tuple[type[CombineRule], ...] = (
    *(Sum, Linear, Ties, TiesSum, Sce, Ram, RamPlus),
    *(ModelStock, Slerp, NuSlerp, MultiSlerp, Karcher, Tsv, IsoC, Wudi),
)
"""Every rule, in the order in which comparisons list them."""
COMBINES = {rule.name: rule for rule in RULES}
"""Rules by name."""
