"""Our log-likelihoods and metrics against those of lm-evaluation-harness, which
`make .venv-lm-eval` installs in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from tokenizers import processors

from cabs_search.kinds.causal import sums_by_part
from cabs_search.scoring.forward import evaluate
from cabs_search.scoring.likelihoods import log_likelihoods
from tests.support.standins import as_items, make_base, rows_of, task_of

LM_EVAL = Path(__file__).parents[2] / ".venv-lm-eval"
HARNESS = Path(__file__).parents[1] / "support" / "harness.py"
MAX_LENGTH = 20
CPU = torch.device("cpu")
COMMON = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1}}
CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{start}}",
    "doc_to_choice": "ends",
    "doc_to_target": "right",
    "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
}
TEXTS = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": name} for name in ("byte_perplexity", "bits_per_byte")],
}
EXTRA = [
    {"start": "", "ends": ["the dog", "a house"], "right": 1},
    {"start": "the cat sits in the house\n", "ends": ["sehr schön", "good"], "right": 0},
    {"start": "the bird " * 20 + "and", "ends": ["runs", "sleeps near the dog", "in"], "right": 2},
]

pytestmark = pytest.mark.slow


def by_harness(folder: Path, model: Path, rows: dict[str, Any]) -> dict[str, Any]:
    """Return the harness's results, or skip with the reason why it is not there."""
    if not (LM_EVAL / ".installed").exists():
        pytest.skip("lm-eval is not installed: make .venv-lm-eval does it, or tells why not")
    for name, fields in (("choices", CHOICES), ("texts", TEXTS)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        task = {"task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | COMMON | fields))
    command = [LM_EVAL / "bin" / "python", HARNESS, model, folder, str(MAX_LENGTH)]
    command.append(folder / "found.json")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("has_bos", [False, True])
def test_every_log_likelihood_and_metric_is_the_harnesss(tmp_path: Path, has_bos: bool) -> None:
    base = make_base(tmp_path / "base", "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    if has_bos:
        mark = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{mark} $A", special_tokens=[(mark, tokenizer.bos_token_id)]
        )
        tokenizer.save_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(base)
    kinds = {"choices": "choices-by-likelihood", "texts": "language-modeling"}
    rows = {name: rows_of(kind, 3, 20) for name, kind in kinds.items()}
    rows["choices"] += EXTRA
    found = by_harness(tmp_path, base, rows)
    for metric in ("acc", "acc_norm", "acc_bytes"):
        task = task_of(kinds["choices"], metric=metric, max_length=MAX_LENGTH)
        items = as_items(rows["choices"], task, model.config, tokenizer)
        every = np.arange(len(items))
        outcome = evaluate(model, items, every, CPU)
        ours = task.measure.compute(outcome.predictions, items.labels)
        assert ours == pytest.approx(found["metrics"]["choices"][f"{metric},none"], abs=1e-12)
    with torch.inference_mode():
        sums = sums_by_part(log_likelihoods(model, items, every, CPU), items.rows)
    theirs = found["logs"]["choices"]
    assert [own.tolist() for own in sums] == [pytest.approx(row, abs=1e-4) for row in theirs]
    task = task_of(kinds["texts"], max_length=MAX_LENGTH)
    items = as_items(rows["texts"], task, model.config, tokenizer)
    outcome = evaluate(model, items, np.arange(len(items)), CPU)
    theirs = [row[0] for row in found["logs"]["texts"]]
    assert outcome.predictions == pytest.approx(theirs, abs=1e-4)
    byte = task.measure.compute(outcome.predictions, items.labels)
    metrics = found["metrics"]["texts"]
    assert 1 / byte == pytest.approx(metrics["byte_perplexity,none"], rel=1e-6)
    assert -np.log2(byte) == pytest.approx(metrics["bits_per_byte,none"], rel=1e-6)
