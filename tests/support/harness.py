"""lm-evaluation-harness on a model and local tasks; run by the Python of its own environment.

Usage: harness.py MODEL TASKS MAX_LENGTH OUT, with a folder of YAML files as TASKS. Written are the
metrics by task, and of every document the log-likelihoods.
"""

from __future__ import annotations

import json
import sys

from lm_eval import simple_evaluate  # type: ignore[import-not-found]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]


def main(model: str, tasks: str, max_length: str, out: str) -> None:
    manager = TaskManager(include_path=tasks, include_defaults=False)
    names = ["choices", "texts"]
    harness = HFLM(
        pretrained=model, device="cpu", dtype="float32", batch_size=1, max_length=int(max_length)
    )
    found = simple_evaluate(model=harness, tasks=names, task_manager=manager, bootstrap_iters=0)
    logs = {}
    for name in names:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        logs[name] = [[numbers(answer[0]) for answer in one["resps"]] for one in samples]
    with open(out, "w") as file:  # noqa: PTH123
        json.dump({"metrics": found["results"], "logs": logs}, file)


def numbers(answer: object) -> float:
    """Return the log-likelihood; of a continuation it stands beside whether it is greedy."""
    return float(answer[0]) if isinstance(answer, (tuple, list)) else float(str(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
