"""Reading and writing checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cabs_search.checkpoints.alignment import align
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.checkpoints.writer import CheckpointWriter, checksum_holds
from cabs_search.merging.task_vector import task_vector
from tests.conftest import EXPERTS, make_base, make_expert


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
        Checkpoint(as_bin(pico / "mood", tmp_path / "b")),
    ):
        assert other.names == one.names
        assert other.fingerprint == one.fingerprint
        assert all(torch.equal(other.read(n), one.read(n)) for n in one.names)


def test_fingerprint_changes_with_one_bit(pico: Path, tmp_path: Path) -> None:
    tensors = load_file(pico / "mood" / "model.safetensors")
    tensors["classifier.bias"][0] += 1e-7
    save_file(tensors, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).fingerprint != Checkpoint(pico / "mood").fingerprint


def test_experts_answer_to_the_bases_names(pico: Path) -> None:
    base = Checkpoint(pico / "base")
    experts = {name: Checkpoint(pico / name, base=base) for name in EXPERTS}
    found = align(base, experts)
    assert set(found.shared) == set(base.names)
    assert all(head == ("classifier.bias", "classifier.weight") for head in found.heads.values())
    assert (
        experts["mood"].model_name("encoder.layer.0.output.dense.bias")
        == "bert.encoder.layer.0.output.dense.bias"
    )
    assert not task_vector(base, experts["mood"], "embeddings.word_embeddings.weight").whole().any()
    assert task_vector(base, experts["mood"], "pooler.dense.weight").whole().all()


def test_a_bare_expert_of_a_prefixed_base(pico: Path) -> None:
    base = Checkpoint(pico / "mood")
    expert = Checkpoint(pico / "base", base=base)
    assert len(set(base.names) & set(expert.names)) == len(expert.names)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 against 2"),
        ({"hidden_size": 32}, "hidden_size is 32 against 16"),
        ({"vocab_size": 99}, "vocab_size is 99 against 20"),
    ],
)
def test_another_architecture_is_refused(
    pico: Path, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    odd = make_expert(tmp_path / "odd", make_base(tmp_path / "other", **changes), 1, 2)
    base = Checkpoint(pico / "base")
    with pytest.raises(ValueError, match=f"experts.odd: .*{message}"):
        align(base, {"odd": Checkpoint(odd, base=base)})


def test_another_shape_is_refused(pico: Path, tmp_path: Path) -> None:
    tensors = load_file(pico / "mood" / "model.safetensors")
    tensors["bert.embeddings.position_embeddings.weight"] = torch.zeros(64, 16)
    save_file(tensors, tmp_path / "model.safetensors")
    base = Checkpoint(pico / "base")
    with pytest.raises(
        ValueError,
        match=r"experts.odd: .*position_embeddings.weight is \(64, 16\) against \(32, 16\)",
    ):
        align(base, {"odd": Checkpoint(tmp_path, base=base)})


def test_a_stranger_is_refused(pico: Path, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "model.safetensors")
    base = Checkpoint(pico / "base")
    with pytest.raises(ValueError, match="must share most of the base's weights"):
        align(base, {"odd": Checkpoint(tmp_path, base=base)})


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


def test_writer_round_trip_in_every_dtype(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.ones(3, dtype=torch.float16),
        "brain": torch.full((5,), 0.1, dtype=torch.bfloat16),
        "ids": torch.arange(4),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 4),
    }
    with CheckpointWriter(tmp_path / "new" / "x.safetensors", tensors, {"note": "λ"}) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    found = load_file(tmp_path / "new" / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert checksum_holds(tmp_path / "new" / "x.safetensors")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="half way"),
        CheckpointWriter(tmp_path / "x.safetensors", ["a"]) as writer,
    ):
        writer.add("a", torch.ones(1000))
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [0, 8, 40, -1])
def test_checksum_sees_damage(tmp_path: Path, at: int) -> None:
    path = tmp_path / "x.safetensors"
    with CheckpointWriter(path, ["a"]) as writer:
        writer.add("a", torch.ones(100))
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    assert not checksum_holds(path)
    path.write_bytes(data[:50])
    assert not checksum_holds(path)


def test_a_buffer_that_is_no_float_in_an_expert_is_not_shared(pico: Path, tmp_path: Path) -> None:
    for name, mask in (("base", torch.ones(4)), ("mood", torch.ones(4, dtype=torch.uint8))):
        tensors = load_file(pico / name / "model.safetensors")
        prefix = "bert." if name == "mood" else ""
        (tmp_path / name).mkdir()
        save_file(tensors | {f"{prefix}encoder.mask": mask}, tmp_path / name / "model.safetensors")
    base = Checkpoint(tmp_path / "base")
    found = align(base, {"mood": Checkpoint(tmp_path / "mood", base=base)})
    assert "encoder.mask" not in found.shared
