"""Bad specs and bad data by name: what is changed, and what the one line must name."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.support.hostile import House, Verdict

Bad = tuple[Callable[[House], Verdict], str]
HUGE = 10**400
NEST = "[" * 3000 + "]" * 3000
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 12)}], y{i}: 1}}\n" for i in range(9)
)
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 12)}]\n" for i in range(9)
)


def text(content: str | bytes, message: str) -> Bad:
    """Plan a file with this content."""
    return lambda house: house.plan(house.spec(content)), message


def field(path: str, value: Any, message: str) -> Bad:
    """Plan a valid spec with one field changed."""

    def act(house: House) -> Verdict:
        values = deepcopy(house.values)
        *way, last = path.split(".")
        here = values
        for part in way:
            here = here.setdefault(part, {})
        here[last] = value
        return house.plan(house.spec(values))

    return act, message


def data(content: str | bytes, message: str, suffix: str = "csv", **fields: Any) -> Bad:
    """Plan a task with this file of data."""

    def act(house: House) -> Verdict:
        values = deepcopy(house.values)
        path = house.spec({}).parent / f"rows.{suffix}"
        kind = {"jsonl": "json"}.get(suffix, suffix)
        values["tasks"]["mood"] |= {"dataset": {kind: str(path)}} | fields
        spec = house.spec(values)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return house.plan(spec)

    return act, message


def special(make: Callable[[Path], None], message: str) -> Bad:
    """Plan a spec at a path that is no ordinary file."""

    def act(house: House) -> Verdict:
        path = house.spec("")
        path.unlink()
        make(path)
        return house.plan(path)

    return act, message


ROWS = "text,label\n" + "".join(f"the cat {'a ' * i}sits,{i % 2}\n" for i in range(60))
SPECS: dict[str, Bad] = {
    "empty file": text("", "a spec must be a mapping, but got NoneType"),
    "binary": text(b"\x00\x01\xff\xfe", "cannot be read"),
    "no UTF-8": text(b"name: \xff\xff", "cannot be read: 'utf-8' codec"),
    "null character": text("name: a\0b", "cannot be read"),
    "tab": text("name:\n\t- a", "cannot be read"),
    "two documents": text("name: a\n---\nname: b", "cannot be read"),
    "open bracket": text("name: [", "cannot be read"),
    "deep nesting": text(f"name: {NEST}", "nested too deeply"),
    "too large": text("#" * (1 << 20) + "\n", "1 MiB at most"),
    "many values": text("name: [" + "1," * 20_000 + "]", "20,000 values at most"),
    "aliases of aliases": text(LAUGHS, "20,000 values at most, with aliases in full"),
    "merges of merges": text(MERGES, "merges hold more than"),
    "alias of itself": text("name: &a [*a]", "20,000 values at most"),
    "merge of itself": text("a: &a {<<: *a}", "nested too deeply"),
    "unknown alias": text("name: *a", "undefined alias"),
    "tag that runs": text(
        "name: !!python/object/apply:os.system ['touch canary']", "cannot be read"
    ),
    "tag of a name": text("name: !!python/name:os.system", "cannot be read"),
    "tag of its own": text("name: !mine {a: 1}", "cannot be read"),
    "field twice": text("name: a\nname: b", "name stands twice, line 1"),
    "inner field twice": text("search: {trials: 1, trials: 2}", "trials stands twice"),
    "list as a name": text("? [a, b]\n: 1", "a field's name must be a text"),
    "mapping as a name": text("? {a: b}\n: 1", "a field's name must be a text"),
    "number of 5,000 digits": text("seed: " + "9" * 5000, "cannot be read"),
    "no such day": text("name: 2001-99-99", "cannot be read"),
    "200,000 fields": text("".join(f"f{i}: 1\n" for i in range(20_000)), "at most"),
    "number for a name": field("name", 5, "name: Input should be a valid string, but got 5"),
    "path as a name": field("name", "../x", "name: "),
    "control character in a name": field("name", "a\x1b[31m", "name: "),
    "newline in a name": field("name", "a\nb", "name: "),
    "long name": field("name", "a" * 101, "name: "),
    "list as the base": field("base", ["x"], "base: Input should be a valid string"),
    "empty base": field("base", "", "base: a folder or a hub id is needed"),
    "null in the base": field("base", "a\0b", "base: 'a\\x00b': no file can have this name"),
    "long base": field("base", "/" + "a" * 300, "base: '/aaa"),
    "user that is not there": field("base", "~nobody-here/x", "base: ~nobody-here/x: "),
    "package that is not there": field("base", "package:../x", "base: package:../x: package"),
    "device as the base": field("base", "/dev/zero", "base: /dev/zero: no such folder"),
    "long path of data": field("tasks.mood.dataset.csv", "a" * 300, "tasks.mood.dataset.csv: 'aaa"),
    "device as data": field("tasks.mood.dataset.csv", "/dev/zero", "/dev/zero: no such file"),
    "separator in an expert's name": field("experts.a/b", "x", "experts.a/b"),
    "newline in an expert's name": field("experts.a\nb", "x", "experts.a b"),
    "long name of an expert": field("experts." + "a" * 101, "x", "experts.aaa"),
    "no experts": field("experts", {}, "experts: "),
    "no tasks": field("tasks", {}, "tasks: "),
    "store that MLflow has not": field(
        "tracking.artifacts", "memory://x", "tracking.artifacts: must be a folder of one of MLflow"
    ),
    "store outside its folder": field("tracking.artifacts", "file:///a/../b", "tracking.artifacts"),
    "password of a store": field("tracking.artifacts", "sftp://me:x@host/a", "without a password"),
    "newline in a store": field("tracking.artifacts", "s3://a\nb", "tracking.artifacts: must be"),
    "list of experts": field("experts", ["x"], "experts: "),
    "pickled of nobody": field("pickled", ["cow"], "pickled: a model must be named (base, mood"),
    "pickled as yes": field("pickled", True, "pickled: "),
    "seed of NaN": field("seed", float("nan"), "seed: "),
    "huge seed": field("seed", HUGE, "seed: "),
    "seed of a text": field("seed", "x", "seed: "),
    "infinite λ": field("space.lambda", {"high": float("inf")}, "space.lambda.high: "),
    "NaN λ": field("space.lambda", {"low": float("nan")}, "space.lambda.low: "),
    "step of NaN": field("space.lambda", {"step": float("nan")}, "space.lambda"),
    "infinite step": field("space.lambda", {"step": float("inf")}, "space.lambda"),
    "tiny step": field("space.lambda", {"step": 1e-300}, "space.lambda: (high - low) / step"),
    "negative step": field("space.lambda", {"step": -0.1}, "space.lambda.step: "),
    "huge λ": field("space.lambda", {"high": 1e300}, "space.lambda.high: "),
    "density of 0": field("space.density", [0], "space.density"),
    "density of NaN": field("space.density", float("nan"), "space.density"),
    "n:m of huge numbers": field("space.nm", [f"{HUGE}:1"], "space.nm[0]: "),
    "n:m below 0": field("space.nm", ["-1:4"], "space.nm[0]: 0 < n must hold"),
    "n:m of a mapping": field("space.nm", {"a": 1}, "space.nm"),
    "pattern that is none": field(
        "space.lambda.groups", {"a": "("}, "space.lambda.groups.a: a group must be a regular"
    ),
    "pattern with a huge repeat": field(
        "space.lambda.groups", {"a": "a{99999999999}"}, "space.lambda.groups.a: "
    ),
    "no anchors": field("space.lambda", {"anchors": 0}, "space.lambda.anchors: "),
    "one anchor": field("space.lambda", {"anchors": 1}, "greater than or equal to 2, but got 1"),
    "more anchors than layers": field(
        "space.lambda", {"anchors": 9}, "space.lambda: 2 <= anchors <= layers <= 1000 must hold"
    ),
    "huge number of anchors": field("space.lambda", {"anchors": HUGE}, "space.lambda.anchors: "),
    "half an anchor": field("space.lambda", {"anchors": 2.5}, "space.lambda.anchors: "),
    "anchors of a text": field("space.lambda", {"anchors": "deep"}, "space.lambda.anchors: "),
    "anchors of a list": field("space.lambda", {"anchors": [0, 1]}, "space.lambda.anchors: "),
    "other layers": field(
        "space.lambda", {"anchors": 2, "layers": 40}, "space.lambda.layers: must be the model's"
    ),
    "order of nobody": field("space.order", [["x"]], "space.order[0]: "),
    "order of numbers": field("space.order", [[1, 2, 3]], "space.order"),
    "method as a number": field("space.method", 5, "space.method"),
    "unknown method": field("space.method", "../x", "space.method[0]: method must be one of"),
    "γ above 1": field("space.gamma", 7, "gamma: 0 <= gamma <= 1"),
    "α below 0": field("space.alpha", -0.1, "alpha: 0 <= alpha <= 1"),
    "ε of a list": field("space.epsilon", [[1]], "epsilon: "),
    "baseline without λ": field("baselines", {"cabs": {}}, "baselines.cabs.lambda: "),
    "baseline of nothing": field("baselines", {"magic": {"lambda": [1]}}, "baselines.magic"),
    "huge budget": field("search.items", HUGE, "search.items: "),
    "odd tag of a number": text("seed: !!float x", "cannot be read"),
    "odd tag of a truth": text("seed: !!bool x", "cannot be read"),
    "odd tag of a day": text("seed: !!timestamp x", "cannot be read"),
    "trials below 0": field("search.trials", -1, "search.trials: "),
    "half a trial": field("search.trials", 1.5, "search.trials: "),
    "huge block": field("search.block", 1.5, "search.block: "),
    "unknown sampler": field("search.sampler", "x", "search.sampler: "),
    "unknown pruner": field("search.pruner", "x", "search.pruner: "),
    "weights of NaN": field(
        "search.objective", {"weights": {"mood": float("nan")}}, "search.objective"
    ),
    "weights of others": field("search.objective", {"weights": {"x": 1}}, "weights: every task"),
    "refine by magic": field("search.refine", {"levels": ["x"]}, "search.refine.levels"),
    "unknown device": field("device", "tpu", "device: "),
    "unknown dtype": field("dtype", "int8", "dtype: "),
    "unknown vocabulary": field("vocabulary", 3, "vocabulary: "),
    "a folder": special(lambda path: path.mkdir(), "no such file"),
    "a pipe": special(lambda path: __import__("os").mkfifo(path), "no such file"),
    "a link to itself": special(lambda path: path.symlink_to(path), "s.yaml"),
    "a link to zeros": special(lambda path: path.symlink_to("/dev/zero"), "no such file"),
}
DATA: dict[str, Bad] = {
    "empty file of data": data("", "tasks.mood.dataset: cannot be read"),
    "header only": data("text,label\n", "tasks.mood"),
    "one row": data("text,label\na,0\n", "tasks.mood.search.items: at most the rows at hand"),
    "rows that repeat": data("text,label\n" + "a,0\n" * 99, "tasks.mood"),
    "NaN labels": data("text,label\n" + "a,\n" * 9 + ROWS[11:], "tasks.mood.label: a label must"),
    "labels out of range": data(ROWS.replace(",1\n", ",7\n"), "tasks.mood.label: a label must be"),
    "labels below 0": data(ROWS.replace(",1\n", ",-1\n"), "tasks.mood.label: a label must be"),
    "labels of fractions": data(ROWS.replace(",1\n", ",0.5\n"), "tasks.mood.label: a label must"),
    "labels of words": data(ROWS.replace(",1\n", ",good\n"), "tasks.mood.label: a label must be"),
    "no column of labels": data(ROWS.replace("label", "y"), "tasks.mood.label: no column label"),
    "no column of texts": data(ROWS.replace("text", "t"), "tasks.mood.text: no column text"),
    "texts that are numbers": data(
        "text,label\n" + "".join(f"{i},{i % 2}\n" for i in range(60)), "tasks.mood.text: every text"
    ),
    "missing texts": data(ROWS + ",1\n", "tasks.mood.text: every text must be a string"),
    "one group": data(
        ROWS.replace("label", "label,who").replace("0\n", "0,a\n").replace("1\n", "1,a\n"),
        "tasks.mood.group: ",
        group="who",
    ),
    "lines that are no JSON": data("{", "tasks.mood.dataset: cannot be read", "jsonl"),
    "JSON of numbers": data("[1, 2]", "tasks.mood", "jsonl"),
    "no parquet": data("PAR1xxxxPAR1", "tasks.mood.dataset: cannot be read", "parquet"),
    "empty parquet": data("", "tasks.mood.dataset: cannot be read", "parquet"),
    "binary rows": data(b"\xff\xfe\x00" * 99, "tasks.mood", "csv"),
    "rows of other lengths": data("text,label\na,0\nb,1,2,3\n", "tasks.mood.dataset: cannot be"),
    "metric of a path": data(ROWS, "tasks.mood.metric: a metric must be a name", metric="../x"),
    "metric of a folder": data(ROWS, "tasks.mood.metric: a metric must be", metric="./metric.py"),
}
