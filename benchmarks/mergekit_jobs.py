"""Merges in mergekit's own environment, told as JSON lines on stdin; the seconds of each go to
stdout.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import merge_state_dicts
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

EACH = ("weight", "density")
"""Parameters of each model; others are the method's."""


def run(job: dict[str, Any]) -> float:
    """``run_merge``, and the result loaded again by the class that is named."""
    given = job["parameters"]
    own = {name: value for name, value in given.items() if name in EACH}
    config = MergeConfiguration.model_validate(
        {
            "merge_method": job["method"],
            "base_model": job["base"],
            "models": [{"model": expert, "parameters": own} for expert in job["experts"]],
            "parameters": {name: value for name, value in given.items() if name not in EACH},
            "dtype": "float32",
        }
    )
    options = MergeOptions(
        copy_tokenizer=False, quiet=True, write_model_card=False, device="cpu", random_seed=0
    )
    start = time.perf_counter()
    run_merge(config, job["out"], options)
    if job["loads"]:
        getattr(transformers, job["loads"]).from_pretrained(job["out"])
    return time.perf_counter() - start


def in_memory(job: dict[str, Any], held: dict[str, Any]) -> float:
    """``merge_state_dicts`` with base and experts in memory; nothing is read or written."""
    for folder in (job["base"], *job["experts"]):
        if folder not in held:
            held[folder] = load_file(Path(folder) / "model.safetensors")
    start = time.perf_counter()
    merge_state_dicts(held, job["method"], base=job["base"], parameters=job["parameters"])
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    held: dict[str, Any] = {}
    for line in sys.stdin:
        job = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr), torch.inference_mode():
            seconds = run(job) if job["act"] == "run_merge" else in_memory(job, held)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
