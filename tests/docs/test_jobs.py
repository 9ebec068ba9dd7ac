"""Files in jobs/, against a schema or a parser of their own projects and of ours."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from cabs_search.cli.parser import parser

JOBS = Path(__file__).parents[2] / "jobs"
SCHEMA = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"


def test_ray_takes_the_cluster() -> None:
    cluster = yaml.safe_load((JOBS / "ray-cluster.yaml").read_text())
    jsonschema.validate(cluster, json.loads(SCHEMA.read_text()))
    kinds = cluster["available_node_types"]
    assert cluster["head_node_type"] in kinds
    assert any(kind["resources"].get("GPU") for kind in kinds.values())


@pytest.mark.parametrize("name", ["kuberay-cluster", "kuberay-job"])
def test_a_kuberay_manifest_has_gpus_and_the_volume_on_every_node(name: str) -> None:
    manifest = yaml.safe_load((JOBS / f"{name}.yaml").read_text())
    assert manifest["apiVersion"] == "ray.io/v1"
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], *groups):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        (cache,) = [v["value"] for v in container["env"] if v["name"] == "CABS_SEARCH_CACHE"]
        assert Path(cache).is_relative_to(mounts["shared"])
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["nvidia.com/gpu"]) > 0


@pytest.mark.parametrize("script", sorted(JOBS.glob("*.sh")), ids=lambda path: path.name)
def test_a_shell_takes_the_script(script: Path) -> None:
    found = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_our_parser_takes_every_command() -> None:
    """Also those in comments."""
    text = "\n".join(path.read_text() for path in JOBS.iterdir())
    commands = re.findall(r"cabs-search (run|submit|status) ([^&\n]*)", text)
    assert len(commands) >= 6
    for name, rest in commands:
        given = rest.replace("$url", "http://127.0.0.1:8265").replace("$output", "/output")
        parser().parse_args([name, *shlex.split(given, comments=True)])


def test_the_image_has_every_file_that_it_copies() -> None:
    lines = (JOBS / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    assert copied
    for names in copied:
        for name in names:
            assert (JOBS.parent / name).exists(), name
