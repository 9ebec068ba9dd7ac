"""Metrics that are computed by name through ``evaluate``."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from cabs_search.metrics.base import Metric, Values

LESS_IS_BETTER = (
    *("mse", "mae", "mape", "mase", "smape"),
    *("wer", "cer", "ter", "brier_score"),
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"),
)
"""Metrics that are refused: a search maximizes."""


class Evaluated(Metric):
    """A metric of the ``evaluate`` library; loading it may need the network."""

    takes_arguments: ClassVar[bool] = True

    def compute(self, predictions: Values, labels: Values) -> float:
        """Return the value that has the metric's name, or the only value.

        Raises:
            ValueError: there are several values and none has the name.

        """
        values = load_module(self.name).compute(
            predictions=predictions.tolist(), references=labels.tolist(), **self.arguments
        )
        wanted = "overall_f1" if self.name == "seqeval" else self.name
        if wanted not in values and len(values) != 1:
            raise ValueError(f"of its values ({', '.join(values)}) none is called {self.name}")
        return float(values[wanted] if wanted in values else next(iter(values.values())))


@cache
def load_module(name: str) -> Any:
    """Load a module of ``evaluate``, once."""
    import evaluate

    return evaluate.load(name)
