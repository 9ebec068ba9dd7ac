"""Facts about a model that its tokenizer does not know."""

from __future__ import annotations

from typing import Any


def positions(config: Any) -> float:
    """Return the most tokens that a model takes; infinity if it does not say.

    RoBERTa and its like count positions from behind the pad token.
    """
    positions = getattr(config, "max_position_embeddings", None) or float("inf")
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= config.pad_token_id + 1
    return float(positions) if positions == float("inf") else int(positions)


def pad_token_id(config: Any, tokenizer: Any) -> int:
    """Return the pad token of the config, else of the tokenizer, else the end mark of either."""
    ids = (
        config.pad_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        getattr(config, "eos_token_id", None),
    )
    return next((int(i) for i in ids if i is not None), 0)
