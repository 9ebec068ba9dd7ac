"""Tasks of lm-evaluation-harness, scored by us and by the harness; run by a Python that has it.

Usage: harness_tasks.py SPEC OUT. A candidate is merged, scored by a resident model and exported;
the harness evaluates the export. OUT gets, by task and document, the answers of both, which are
log-likelihoods or a text, and their scores; and their metrics over all documents.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import simple_evaluate  # type: ignore[import-not-found]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

from cabs_search.kinds.causal import sums_by_part
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE, make_recipe
from cabs_search.scoring.likelihoods import log_likelihoods
from cabs_search.scoring.workbench import Workbench
from cabs_search.serving.export import export
from cabs_search.spec.harness import members, open_task
from cabs_search.spec.load import load
from cabs_search.spec.study import Spec
from cabs_search.tasks.harness import row_of
from cabs_search.tasks.items import SPLITS, Items
from cabs_search.tasks.load import load_study_items

METRICS = {"loglikelihood_rolling": "byte_perplexity"}
"""Metric of the harness that stands for ours, by type of output."""


def main(path: str, out: str) -> None:
    folder, spec = Path(out).parent, load(path)
    warnings.filterwarnings("ignore", message=".*few-shot examples of others")
    items = load_study_items(spec)
    family = Family.open(spec.base, spec.experts)
    recipe = make_recipe(
        make_method("task-arithmetic", tuple(spec.experts)), dict.fromkeys(spec.experts, 0.6)
    )
    bench = Workbench(family, spec.tasks, VectorCache(folder / "cache"), device="cpu")
    bench.materialize(recipe)
    found = {"ours": {name: ours(bench, name, items) for name in spec.tasks}, "theirs": {}}
    export(family, recipe, folder / "merged", heads=spec.heads)
    for name in spec.tasks:
        found["theirs"][name] = theirs(folder / "merged", spec, name)
    Path(out).write_text(json.dumps(found))


def ours(bench: Workbench, name: str, items: Mapping[Any, Mapping[str, Items]]) -> dict[str, Any]:
    """Return answers and scores by key of the document, and the metric over all."""
    documents, found = {}, []
    for split in SPLITS:
        of_task = items[split][name]
        every = np.arange(len(of_task))
        outcome = bench.score({name: of_task}, {name: every})[name]
        found.append((outcome.scores, outcome.predictions, of_task.labels))
        answers = list(outcome.predictions)
        if not of_task.task.kind.generates:
            with torch.inference_mode():
                logs = log_likelihoods(bench.models[BASE], of_task, every, bench.device)
            answers = [own.tolist() for own in sums_by_part(logs, of_task.rows)]
        for key, answer, score in zip(of_task.keys, answers, outcome.scores, strict=True):
            documents[key] = {"answer": answer, "score": float(score)}
    metric = of_task.task.measure.of(*map(np.concatenate, zip(*found, strict=True)))
    return {"documents": documents, "metric": metric}


def theirs(model: Path, spec: Spec, name: str) -> dict[str, Any]:
    """Return what ``ours`` does, by the harness's own evaluation."""
    task = spec.tasks[name]
    source, generates = task.dataset, task.kind.generates
    harness = HFLM(
        pretrained=str(model),
        device="cpu",
        dtype="float32",
        batch_size=1 if generates else 3,  # it pads prompts in a way that changes some texts
        max_length=task.max_length,
    )
    found = simple_evaluate(
        model=harness,
        tasks=[source.harness],
        task_manager=TaskManager(include_path=source.include, include_defaults=False),
        num_fewshot=source.num_fewshot,
        apply_chat_template=source.chat_template,
        bootstrap_iters=0,
    )
    documents, pipeline = {}, source.filter or "none"
    for member in members(name, source):
        opened = open_task(name, replace(source, harness=member))
        metric = METRICS.get(opened.OUTPUT_TYPE, task.metric)
        for sample in found["samples"][member]:
            if sample["filter"] != pipeline:
                continue
            arguments = [tuple(one) for one in sample["arguments"]]
            row = row_of(name, task, opened, sample["doc"], arguments)
            answers = [answer[0] for answer in sample["resps"]]
            logs = [a[0] if isinstance(a, (tuple, list)) else a for a in answers]
            answer = answers[0] if generates else list(map(float, logs))
            documents[row.key] = {"answer": answer, "score": float(np.mean(sample[metric]))}
    result = found["results"][source.harness][f"{metric},{pipeline}"]
    return {"documents": documents, "metric": 1 / result if metric in METRICS.values() else result}


if __name__ == "__main__":
    main(*sys.argv[1:])
