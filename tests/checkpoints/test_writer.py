"""Safetensors files written as a stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cabs_search.checkpoints.writer import CheckpointWriter, checksum_holds
from cabs_search.cluster.worker import MACHINES
from tests.support.disk import small_files


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


def test_a_disk_that_is_full_is_left_as_it_was(tmp_path: Path) -> None:
    with (
        small_files(5000),
        pytest.raises(OSError) as raised,
        CheckpointWriter(tmp_path / "x.safetensors", ["a", "b"]) as writer,
    ):
        for name in ("a", "b"):
            writer.add(name, torch.ones(1000))
    assert raised.value.errno in MACHINES
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
