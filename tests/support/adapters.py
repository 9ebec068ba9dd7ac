"""Adapters with random values, as PEFT saves them, and what PEFT itself makes of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def adapt(model: Any, to: Path, seed: int = 1, **settings: Any) -> PeftModel:
    """Adapt a model, with random values of everything that would be tuned, and save the adapter."""
    torch.manual_seed(seed)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # peft's own, of which transformers' news are most
        adapted: PeftModel = get_peft_model(
            model, LoraConfig(**{"r": 4, "lora_alpha": 6} | settings)
        )
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        adapted.save_pretrained(to)
    return adapted


def merged(adapted: PeftModel) -> Any:
    """Return the model with the adapter merged into it, by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adapted.merge_and_unload()
