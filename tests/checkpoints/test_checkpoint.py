"""Reading checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cabs_search.checkpoints.checkpoint import ChangedFileError, Checkpoint
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.merging.task_vector import task_vector
from cabs_search.scoring.workbench import Workbench
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values
from tests.support.adapters import adapt


def sharded(source: Path, to: Path) -> Path:
    """The same weights in two files and an index."""
    to.mkdir()
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:7], names[7:])):
        save_file({n: tensors[n] for n in part}, to / f"part{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"part{i}.safetensors")
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (to / "config.json").write_text((source / "config.json").read_text())
    return to


def as_bin(source: Path, to: Path, *, zipped: bool = True) -> Path:
    to.mkdir()
    tensors = load_file(source / "model.safetensors")
    torch.save(tensors, to / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return to


def test_one_file_shards_and_bin_read_alike(pico: Path, tmp_path: Path) -> None:
    one = Checkpoint(pico / "mood")
    for other in (
        Checkpoint(sharded(pico / "mood", tmp_path / "s")),
        Checkpoint(as_bin(pico / "mood", tmp_path / "b"), pickled=True),
    ):
        assert other.names == one.names
        assert other.fingerprint == one.fingerprint
        assert all(torch.equal(other.read(n), one.read(n)) for n in one.names)


def test_fingerprint_changes_with_one_bit(pico: Path, tmp_path: Path) -> None:
    tensors = load_file(pico / "mood" / "model.safetensors")
    tensors["classifier.bias"][0] += 1e-7
    save_file(tensors, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).fingerprint != Checkpoint(pico / "mood").fingerprint


def test_old_layer_norm_names(pico: Path, tmp_path: Path) -> None:
    tensors = load_file(pico / "base" / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).names == Checkpoint(pico / "base").names


def test_half_precision_is_subtracted_in_float32(tmp_path: Path) -> None:
    for name, value in (("base", 1.0), ("expert", 1.0078125)):
        (tmp_path / name).mkdir()
        save_file(
            {"w": torch.tensor([value], dtype=torch.bfloat16)},
            tmp_path / name / "model.safetensors",
        )
    base = Checkpoint(tmp_path / "base")
    delta = task_vector(base, Checkpoint(tmp_path / "expert", base=base), "w").whole()
    assert delta.dtype == torch.float32
    assert delta.item() == 0.0078125


def test_nan_is_refused(pico: Path, tmp_path: Path) -> None:
    tensors = load_file(pico / "mood" / "model.safetensors")
    tensors["bert.pooler.dense.bias"][3] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    base = Checkpoint(pico / "base")
    with pytest.raises(ValueError, match="must be finite, but pooler.dense.bias"):
        task_vector(base, Checkpoint(tmp_path, base=base), "pooler.dense.bias").whole()


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 100])
def test_a_damaged_file_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors: cannot be read"):
        Checkpoint(tmp_path)


def test_missing_folder_and_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds neither"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/tmp/elsewhere.safetensors"])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, shard: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "elsewhere.safetensors")
    (tmp_path / "model").mkdir()
    index = {"weight_map": {"w": shard}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must name files of its own folder, but got"):
        Checkpoint(tmp_path / "model")


def test_a_shard_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    index = {"weight_map": {"w": "pipe.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"pipe\.safetensors: no such file"):
        Checkpoint(tmp_path)


def test_a_tensor_that_is_there_twice_is_refused(pico: Path, tmp_path: Path) -> None:
    """In two shards, or with the base's prefix and without it."""
    for shard in ("a", "b"):
        save_file({"w": torch.ones(2), shard: torch.ones(2)}, tmp_path / f"{shard}.safetensors")
    index = {"weight_map": {"w": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"b\.safetensors: holds w, which .*a\.safetensors has"):
        Checkpoint(tmp_path)
    base = Checkpoint(pico / "base")
    tensors = load_file(pico / "mood" / "model.safetensors")
    tensors["pooler.dense.bias"] = tensors["bert.pooler.dense.bias"].clone()
    (tmp_path / "twice").mkdir()
    save_file(tensors, tmp_path / "twice" / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds (bert\.)?pooler\.dense\.bias twice"):
        Checkpoint(tmp_path / "twice", base=base)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def replace_by_another(file: Path) -> None:
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


@pytest.mark.parametrize("change", [cut, replace_by_another, os.remove])
def test_a_file_that_changes_is_read_no_more(
    pico: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """To read the mapped bytes of one that was cut would end the process."""
    base = Checkpoint(sharded(pico / "base", tmp_path / "base"))
    file = tmp_path / "base" / "part1.safetensors"
    name = next(iter(load_file(file)))
    other = next(iter(load_file(tmp_path / "base" / "part0.safetensors")))
    base.check_current()
    change(file)
    for use in (base.check_current, lambda: base.read(name), lambda: base.fingerprint):
        with pytest.raises(ChangedFileError) as found:
            use()
        assert str(found.value) == f"{file}: changed while it was in use"
    assert torch.equal(base.read(other), Checkpoint(pico / "base").read(other))


def test_a_file_of_an_expert_that_changes_ends_scoring(pico: Path, tmp_path: Path) -> None:
    """Of an adapter as of a whole model, also where all that is needed was read."""
    shutil.copytree(pico / "mood", tmp_path / "mood")
    model = transformers.BertForSequenceClassification.from_pretrained(pico / "animal")
    adapt(model, tmp_path / "animal", task_type="SEQ_CLS", target_modules=["query"])
    values = pico_values(pico)
    values["experts"] = {"mood": str(tmp_path / "mood"), "animal": str(tmp_path / "animal")}
    values["tasks"].pop("pair")
    spec = parse(values | {"baselines": {}})
    items = load_study_items(spec)["search"]
    rows = {task: np.arange(4) for task in spec.tasks}
    recipe = make_recipe(
        make_method("cabs", ("mood", "animal"), nm=(2, 8)), {"mood": 0.5, "animal": 1.0}
    )
    for changed in ("mood/model.safetensors", "animal/adapter_model.safetensors"):
        family = Family.open(spec.base, spec.experts)
        bench = Workbench(family, spec.tasks, VectorCache(tmp_path / "cache"), device="cpu")
        bench.materialize(recipe)
        bench.score(items, rows)
        file = tmp_path / changed
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        for use in (lambda b=bench: b.materialize(recipe), lambda b=bench: b.score(items, rows)):
            with pytest.raises(ChangedFileError, match=changed):
                use()
