"""What a user would run instead: masks by torch, the authors' loop and workflow, mergekit and
lm-evaluation-harness in environments of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from benchmarks.figures import LM_EVAL, MERGEKIT
from cabs_search.kinds.base import Item

PADDED = 128
"""Tokens the authors' scripts pad every item to."""
BATCH = 32
"""Items of a batch in the authors' workflow; the Trainer's own 8 is slower."""


def topk_mask(delta: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """torch.topk over all blocks at once; full blocks only."""
    blocks = delta.reshape(-1)[: delta.numel() // m * m].reshape(-1, m).abs()
    mask = torch.zeros_like(blocks, dtype=torch.bool)
    return mask.scatter_(1, blocks.topk(n, dim=1, sorted=False).indices, value=True).reshape(-1)


def loop_mask(delta: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Block after block in Python, as the authors publish pruning to be done: the n largest
    magnitudes of each.
    """
    flat = delta.reshape(-1)
    mask = torch.zeros(len(flat), dtype=torch.bool)
    for start in range(0, len(flat) - m + 1, m):
        mask[start + flat[start : start + m].abs().topk(n).indices] = True
    return mask


def padded(rows: Sequence[Item], pad: Mapping[str, int]) -> list[dict[str, list[int]]]:
    """Items as the Trainer is given them, every one padded to PADDED tokens."""
    found = []
    for row in rows:
        (sequence,) = row.sequences
        width = len(sequence["input_ids"])
        fields = {f: [*sequence[f], *[pad[f]] * (PADDED - width)] for f in pad}
        found.append(
            fields | {"attention_mask": [1] * width + [0] * (PADDED - width), "labels": row.label}
        )
    return found


def predict(model: Any, rows: list[dict[str, list[int]]], scratch: Path) -> np.ndarray:
    """Classes by Trainer.predict."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_eval_batch_size=BATCH,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return np.asarray(Trainer(model=model, args=arguments).predict(rows).predictions.argmax(-1))


class Authors:
    """A candidate by the authors' workflow: dense pruned vectors and the base from disk, summed,
    saved, loaded.
    """

    def __init__(
        self,
        scratch: Path,
        base: Path,
        experts: Mapping[str, Path],
        vectors: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> None:
        """Write the pruned vectors down, dense; ``vectors`` by expert and tensor of the trunk."""
        from transformers import AutoModel, AutoModelForSequenceClassification

        self._scratch = scratch
        self._trunk = scratch / "merged"
        model = AutoModel.from_pretrained(base)
        model.config.save_pretrained(self._trunk)
        torch.save(model.state_dict(), scratch / "base.pt")
        self._heads: dict[str, Any] = {}
        for name, folder in experts.items():
            torch.save(dict(vectors[name]), scratch / f"{name}.pt")
            self._heads[name] = AutoModelForSequenceClassification.from_pretrained(
                folder
            ).classifier.state_dict()

    def merge(self, lambdas: Mapping[str, float]) -> tuple[dict[str, Any], float]:
        """A model for every task, and the seconds it took."""
        from transformers import AutoModelForSequenceClassification

        start = time.perf_counter()
        state = torch.load(self._scratch / "base.pt")
        for name, lambda_ in lambdas.items():
            for tensor, tau in torch.load(self._scratch / f"{name}.pt").items():
                state[tensor] += lambda_ * tau
        torch.save(state, self._trunk / "pytorch_model.bin")
        models = {}
        for name, head in self._heads.items():
            labels = len(head["bias"])
            model = AutoModelForSequenceClassification.from_pretrained(
                self._trunk, num_labels=labels
            )
            model.classifier.load_state_dict(head)
            models[name] = model.eval()
        return models, time.perf_counter() - start


class _Outside:
    """A script in a process of another environment, which answers JSON lines and times itself."""

    def __init__(self, name: str, environment: Path, log: Path, threads: int) -> None:
        """Start ``NAME_jobs.py`` beside this file; what it says beside answers goes to ``log``."""
        script = Path(__file__).with_name(f"{name}_jobs.py")
        command = [str(environment / "bin" / "python"), str(script), str(threads)]
        self._name, self._log = name, log.open("w")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def ask(self, job: Mapping[str, Any]) -> Any:
        """The answer to a job. Raises RuntimeError if the process ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            log = Path(self._log.name).read_text().strip().splitlines()
            raise RuntimeError([f"{self._name} ended without a word", *log][-1])
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()


class Mergekit(_Outside):
    """mergekit in a process of its own environment."""

    def __init__(
        self,
        base: Path,
        experts: Mapping[str, Path],
        out: Path,
        threads: int,
        loads: str = "AutoModelForSequenceClassification",
    ) -> None:
        """``loads``: the class of transformers that loads what was merged; empty: none."""
        super().__init__("mergekit", MERGEKIT, out.parent / "mergekit.log", threads)
        self._settings = {
            "base": str(base),
            "experts": [str(e) for e in experts.values()],
            "out": str(out),
            "loads": loads,
        }

    @staticmethod
    def missing() -> str:
        """Why it cannot be run; empty where it can."""
        return (
            ""
            if (MERGEKIT / ".installed").exists()
            else "mergekit is not installed: make .venv-mergekit"
        )

    def seconds(self, act: str, method: str, **parameters: float | bool) -> float:
        """Of one merge: ``run_merge`` with reload, or ``merge_state_dicts`` with everything in
        memory.
        """
        return float(
            self.ask(self._settings | {"act": act, "method": method, "parameters": parameters})
        )


class LmEval(_Outside):
    """lm-evaluation-harness in a process of its own environment."""

    def __init__(self, log: Path, threads: int) -> None:
        super().__init__("lm_eval", LM_EVAL, log, threads)

    @staticmethod
    def missing() -> str:
        """Why it cannot be run; empty where it can."""
        is_there = (LM_EVAL / ".installed").exists()
        return "" if is_there else "lm-eval is not installed: make .venv-lm-eval"
