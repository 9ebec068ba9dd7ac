"""Lists of the metrics that are computed here, by what they compare; a kind names its list.

The first of a list is the default of its kinds. Other names are computed by ``evaluate``.
"""

from __future__ import annotations

from cabs_search.metrics.base import Metric
from cabs_search.metrics.choices import (
    ACC,
    ACC_BYTES,
    ACC_NORM,
    ACC_OF_CONTINUATIONS,
    ACC_OF_SHARES,
)
from cabs_search.metrics.classes import (
    ACCURACY,
    EXACT_MATCH,
    F1_OF_CLASSES,
    MATTHEWS_CORRELATION,
    OverWords,
)
from cabs_search.metrics.correlations import PEARSONR, SPEARMANR
from cabs_search.metrics.squad import ANSWER_EXACT_MATCH, ANSWER_F1
from cabs_search.metrics.texts import BYTE_PROBABILITY

OF_CLASSES = (
    ACCURACY,
    EXACT_MATCH,
    F1_OF_CLASSES,
    MATTHEWS_CORRELATION,
)  # fmt: skip
OF_NUMBERS = (PEARSONR, SPEARMANR)
OF_ANSWERS = (ANSWER_F1, ANSWER_EXACT_MATCH)
OF_WORDS = tuple(OverWords(name=metric.name, metric=metric) for metric in OF_CLASSES)
OF_CHOICES = (ACC, ACC_NORM, ACC_BYTES)
OF_SHARES = (ACC_OF_SHARES,)
OF_CONTINUATIONS = (ACC_OF_CONTINUATIONS,)
OF_TEXTS = (BYTE_PROBABILITY,)
OF_GENERATED = (ANSWER_EXACT_MATCH, ANSWER_F1)
METRICS: tuple[Metric, ...] = (
    *OF_CLASSES,
    *OF_NUMBERS,
    *OF_ANSWERS,
    *OF_WORDS,
    *OF_CHOICES,
    *OF_SHARES,
    *OF_CONTINUATIONS,
    *OF_TEXTS,
)
