"""Answers of base, experts and merged model to the same prompts, side by side."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TOKENS = 12
"""Most tokens of an answer, which ends with its line."""


def answers(
    base: Path, adapters: Sequence[Path], merged: Path, prompts: Sequence[str]
) -> dict[str, list[str]]:
    """Return what each model says to each prompt, greedily; names are those of the folders."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    return {
        name: _say(model, tokenizer, prompts) for name, model in _models(base, adapters, merged)
    }


def _models(base: Path, adapters: Sequence[Path], merged: Path) -> Iterator[tuple[str, Any]]:
    """Load one model after another, so that there is never more than one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    yield "base", load(base)
    for folder in adapters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft's own call of transformers
            model = PeftModel.from_pretrained(load(base), str(folder))
        yield folder.name, model
    yield "merged", load(merged)


def _say(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    inputs = tokenizer(list(prompts), padding=True, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(
        made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [text.strip().partition("\n")[0] for text in texts]
