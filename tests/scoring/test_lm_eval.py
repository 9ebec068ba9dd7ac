"""Our log-likelihoods and metrics against those of lm-evaluation-harness, which
`make .venv-lm-eval` installs in an environment of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
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

ROOT = Path(__file__).parents[2]
LM_EVAL = ROOT / ".venv-lm-eval"
HARNESS, HARNESS_TASKS = (ROOT / "tests" / "support" / f"harness{end}.py" for end in ("", "_tasks"))
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
IFEVAL = [f"{of}_{how}_acc" for of in ("prompt_level", "inst_level") for how in ("strict", "loose")]
FUNCTION = "!function utils.process_results_mc2"
QUIZ = {
    "output_type": "multiple_choice",
    "fewshot_split": "train",
    "num_fewshot": 2,
    "description": "Answer these questions.\n\n",
    "doc_to_text": "Q: {{start}}\nA:",
    "doc_to_choice": "ends",
    "doc_to_target": "right",
    "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
}
LOCAL_TASKS: dict[str, dict[str, Any]] = {
    "quiz": QUIZ,
    "first": QUIZ | {"fewshot_config": {"sampler": "first_n"}, "fewshot_split": "test"},
    "few": QUIZ | {"test_split": "few"},
    "inputs": {
        "output_type": "multiple_choice",
        "training_split": "train",
        "num_fewshot": 1,
        "doc_to_text": "{{right}}",
        "doc_to_choice": "{{ends | map('replace', 'the', 'a') | list}}",
        "doc_to_target": "{{start}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "truths": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "ends",
        "doc_to_target": 0,
        "process_results": FUNCTION,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "ends": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{start}}",
        "doc_to_target": "{{next}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "pages": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{start}} {{ends[0]}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "words": {
        "output_type": "generate_until",
        "doc_to_text": "{{start}}",
        "doc_to_target": "wrote",
        "generation_kwargs": {"until": ["\n", "the"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "ignore_case": True}],
        "filter_list": [
            {
                "name": "first",
                "filter": [
                    {"function": "regex", "regex_pattern": "(\\S)"},
                    {"function": "take_first"},
                ],
            },
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
    },
    "follows": {
        "output_type": "generate_until",
        "fewshot_split": "train",
        "num_fewshot": 2,
        "doc_to_text": "Q: {{start}}\nA:",
        "doc_to_target": "{{ends[0]}}",
        "generation_kwargs": {"max_new_tokens": 12, "temperature": 0},
        "process_results": "!function utils.follow",
        "metric_list": [
            {"metric": "each", "aggregation": "median", "higher_is_better": True},
            {"metric": "share", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "instructions": {
        "output_type": "generate_until",
        "doc_to_text": "{{start}}",
        "doc_to_target": 0,
        "generation_kwargs": {"until": [], "max_gen_toks": 12},
        "process_results": "!function utils.instructed",
        "metric_list": [
            {
                "metric": "inst_level_strict_acc",
                "aggregation": "!function utils.agg_inst_level_acc",
                "higher_is_better": True,
            }
        ],
    },
}
GROUP: dict[str, Any] = {
    "group": "both",
    "task": ["few", "a"],
    "aggregate_metric_list": [{"metric": "acc_norm", "weight_by_size": True}],
}
MC2 = """
import numpy as np

def follow(doc, results):
    found = [letter in results[0] for letter in "aeiou"]
    return {"each": found, "share": sum(found) / len(found)}

def instructed(doc, results):
    letters = "aeiouy"[:len(doc["ends"])]
    return {"inst_level_strict_acc": [letter in results[0] for letter in letters]}

def agg_inst_level_acc(lists):
    flat = [one for several in lists for one in several]
    return sum(flat) / len(flat)

def process_results_mc2(doc, results):
    shares = np.exp([log for log, _ in results])
    right = np.arange(len(shares)) != doc["right"]
    return {"acc": shares[right].sum() / shares.sum()}
"""
DESCRIBE = """
import json, sys
from cabs_search.spec.harness import describe
from cabs_search.spec.task import DataSource, Task
from cabs_search.tasks.harness import Reference, score_texts

def described(name):
    try:
        found = describe("t", DataSource(harness=name))
        return [str(found.kind), *found.metrics]
    except ValueError as error:
        return str(error)

def gsm8k(filter, answer):
    # nothing of the task's data is read
    source = DataSource(harness="gsm8k", filter=filter)
    task = Task(kind="generation", metric="exact_match", dataset=source)
    reference = Reference("gsm8k", {"question": "?", "answer": answer}, False)
    texts = ["It is 1 + 1 #### 1,002.", "So 7, or 1002"]
    return score_texts(task, [reference] * 2, texts)

with open(sys.argv[1], "w") as file:
    found = {name: described(name) for name in sys.stdin.read().split()}
    scores = [gsm8k("strict-match", "So #### 1002"), gsm8k("flexible-extract", "So #### 1002")]
    json.dump([found, scores], file)
"""
CHAT = """{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}\
{% endif %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""

pytestmark = pytest.mark.slow


def by_harness(folder: Path, model: Path, rows: dict[str, Any]) -> dict[str, Any]:
    """Return the harness's results."""
    for name, fields in (("choices", CHOICES), ("texts", TEXTS)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        task = {"task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | COMMON | fields))
    return by_script(folder, HARNESS, model, folder, str(MAX_LENGTH))


def by_script(folder: Path, script: Path, *arguments: str | Path, names: str = "") -> Any:
    """Run a script by a Python that has lm-eval, and return the JSON that it writes, or skip."""
    python = sys.executable
    if find_spec("lm_eval") is None:
        python = str(LM_EVAL / "bin" / "python")
        if not (LM_EVAL / ".installed").exists():
            pytest.skip("lm-eval is not installed: make .venv-lm-eval does it, or tells why not")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [python, script, *arguments, folder / "found.json"],
        input=names,
        env=os.environ | offline | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


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


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_tasks_by_name_are_scored_as_by_the_harness(tmp_path: Path, architecture: str) -> None:
    spec = spec_of_local_tasks(tmp_path, architecture)
    found = by_script(tmp_path, HARNESS_TASKS, spec)
    for name, ours in found["ours"].items():
        theirs = found["theirs"][name]
        is_whole = name != "first"
        left_out = set(theirs["documents"]) - set(ours["documents"])
        assert not set(ours["documents"]) - set(theirs["documents"])
        assert len(left_out) == (0 if is_whole else 3), "few-shot examples, of themselves one more"
        for key, document in ours["documents"].items():
            answer = theirs["documents"][key]["answer"]
            if not isinstance(answer, str):
                answer = pytest.approx(answer, abs=1e-4)
            assert document["answer"] == answer
            if name != "pages":
                score = theirs["documents"][key]["score"]
                assert document["score"] == pytest.approx(score, abs=1e-5)
        if is_whole:
            is_counted = name not in ("truths", "pages", "follows", "follows-chat")
            error = 1e-12 if is_counted else 1e-5
            assert ours["metric"] == pytest.approx(theirs["metric"], rel=error)
    for name in ("ends", "words", "follows", "follows-chat", "instructions"):
        assert 0 < found["ours"][name]["metric"] < 1, "some are right, not all"


def test_the_harnesss_own_names_are_known(tmp_path: Path) -> None:
    script = tmp_path / "describe.py"
    script.write_text(DESCRIBE)
    expected = {
        "arc_challenge": ["choices-by-likelihood", "acc_norm", "acc"],
        "hellaswag": ["choices-by-likelihood", "acc_norm", "acc"],
        "truthfulqa_mc2": ["right-choices", "acc"],
        "winogrande": ["choices-by-likelihood", "acc"],
        "lambada_openai": ["greedy-continuation", "acc"],
        "wikitext": ["language-modeling", "byte_probability"],
        "gsm8k": ["generation", "exact_match"],
        "ifeval": ["generation", *IFEVAL],
        "ai2_arc": ["choices-by-likelihood", "acc_norm", "acc"],
        "mmlu": ["choices-by-likelihood", "acc"],
        "bbh": ["generation", "exact_match"],
        "openllm": "t.dataset.harness: a group must leave its members as they are, but openllm sets"
        " fewshot_split of some; name them one by one",
        "humaneval": "t.dataset.harness: generated code is not run here, but humaneval runs it",
    }
    found, scores = by_script(tmp_path, script, names=" ".join(expected))
    assert found == expected
    assert scores == [[1.0, 0.0], [1.0, 1.0]], "by GSM8K's own filters"


def spec_of_local_tasks(folder: Path, architecture: str) -> Path:
    """Write two models, rows, YAML files of the harness, and a spec that names their tasks."""
    base = make_base(folder / "base", architecture)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT
    config = transformers.AutoConfig.from_pretrained(base)
    config.max_position_embeddings = 256
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, moved in (("base", 0.2), ("one", 0.002), ("two", 0.002)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=moved)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(MC2)
    data = {split: str(tasks / f"{split}.jsonl") for split in ("train", "test", "few")}
    for seed, (split, path) in enumerate(data.items()):
        rows = rows_of("choices-by-likelihood", seed, 9 if split == "few" else 24)
        rows = [row | {"next": next_of(model, tokenizer, row["start"])} for row in rows]
        for row in rows:
            row["wrote"] = ["?", next_of(model, tokenizer, row["start"]).strip()[:1]]
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = COMMON | {"dataset_kwargs": {"data_files": data}}
    for name, fields in LOCAL_TASKS.items():
        text = yaml.safe_dump(common | fields | {"task": name})
        text = re.sub("'(!function .*)'", r"\1", text)
        (tasks / f"{name}.yaml").write_text(text)
    for group in (GROUP, {"group": "a", "task": ["inputs"]}):
        (tasks / f"{group['group']}.yaml").write_text(yaml.safe_dump(group))
    sources: dict[str, dict[str, Any]] = {
        name: {"harness": name} for name in (*LOCAL_TASKS, GROUP["group"])
    }
    for name in ("quiz", "ends", "follows"):
        sources[f"{name}-chat"] = {"harness": name, "chat_template": True}
    sources["words-whole"] = {"harness": "words", "filter": "whole"}
    sources["quiz-none"] = {"harness": "quiz", "num_fewshot": 0}
    own = {"include": "tasks", "allow_test": True}
    tasks_of = {name: {"dataset": own | one, "max_length": 100} for name, one in sources.items()}
    values = {
        "name": "local",
        "base": "base",
        "experts": {"one": "one", "two": "two"},
        "tasks": tasks_of,
    }
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(values))
    return spec


def next_of(model: Any, tokenizer: Any, text: str) -> str:
    """Return the likeliest next token as text, if a tokenizer finds it there again."""
    tokens = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        best = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
    found = tokenizer.decode([best])
    return found if tokenizer(text + found)["input_ids"] == [*tokens, best] else " the"
