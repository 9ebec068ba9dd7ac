"""Searches on a running Ray cluster: by --address, and as Ray jobs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cabs_search.cluster.driver import _gpus
from cabs_search.results.leaderboard import read_leaderboard
from tests.conftest import EXPERTS, pico_values, write_spec


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Head node on loopback, as ``ray start --head`` makes it."""
    port, dashboard = free_port(), free_port()
    temp = tmp_path_factory.mktemp("ray")
    env = os.environ | {
        "CABS_SEARCH_CACHE": str(temp / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # else Ray makes a reachable address of a loopback one
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with (temp / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *("ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
                *(f"--port={port}", "--node-ip-address=127.0.0.1"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                f"--dashboard-agent-listen-port={free_port()}",
            ],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{dashboard}/api/version", timeout=5
                ).close()
                break
            except OSError as error:
                if "401" in str(error) or "403" in str(error):
                    break
                assert process.poll() is None, (temp / "log").read_text()
                assert time.monotonic() < deadline, (temp / "log").read_text()
                time.sleep(0.5)
        yield env | {"GCS": f"127.0.0.1:{port}", "DASHBOARD": f"http://127.0.0.1:{dashboard}"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_a_search_joins_a_running_cluster(head: dict[str, str], pico: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "pico.yaml", pico_values(pico, trials=4))
    command = [sys.executable, "-m", "cabs_search.cli", "run", str(spec)]
    command += ["--output", str(tmp_path / "out"), "--address", head["GCS"]]
    found = subprocess.run(
        command, env=head, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert read_leaderboard(tmp_path / "out").candidates == 4


def call(
    head: dict[str, str], *arguments: object, status: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cabs_search.cli", *map(str, arguments)]
    found = subprocess.run(
        [*command, "--address", head["DASHBOARD"]],
        env=head, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == status, (found.stdout + found.stderr)[-3000:]
    return found


def test_a_search_runs_as_a_job(head: dict[str, str], pico: Path, tmp_path: Path) -> None:
    """The spec and its data travel; models lie where the cluster sees them."""
    spec = write_spec(tmp_path / "pico.yaml", pico_values(pico, trials=12, block=4))
    out = tmp_path / "out"
    shared = [part for name in ("base", *EXPERTS) for part in ("--shared", pico / name)]
    hidden = call(head, "submit", spec, "--output", out, status=2)
    assert "base: " in hidden.stderr
    assert "--shared" in hidden.stderr
    job = json.loads(call(head, "submit", spec, "--output", out, *shared, "--json").stdout)["job"]
    deadline = time.monotonic() + 200
    while not (out / "progress.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    news = json.loads(call(head, "status", out, "--json").stdout)
    assert news["name"] == "pico"
    assert news["state"] in ("at work", "finished")
    assert call(head, "stop", job).stdout.startswith(f"job {job}: ")
    last = call(head, "submit", spec, "--output", out, *shared, "--follow")
    assert "best found" in last.stdout
    assert read_leaderboard(out).candidates == 12
    told = call(head, "status", out).stdout
    assert "finished" in told
    assert "12 of 12 (100%)" in told


def test_a_job_that_fails_says_so(head: dict[str, str], pico: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "pico.yaml", pico_values(pico) | {"base": str(pico / "nowhere")})
    found = call(
        head, "submit", spec, "--output", tmp_path / "out", "--shared", "/", "--follow", status=1
    )
    assert "no such folder" in found.stdout
    assert "failed" in found.stderr
    assert "no search has begun there" in call(head, "status", tmp_path / "x", status=1).stderr


@pytest.mark.parametrize(
    ("device", "in_cluster", "gpus"), [("auto", 4.0, 4.0), ("auto", 0.0, 0.0), ("cpu", 4.0, 0.0)]
)
def test_a_clusters_gpus_are_used_though_its_head_has_none(
    device: str, in_cluster: float, gpus: float
) -> None:
    assert _gpus(device, in_cluster, is_cluster=True) == gpus
    with pytest.raises(RuntimeError, match="the cluster has no GPU"):
        _gpus("cuda", 0.0, is_cluster=True)


def test_where_no_cluster_answers(tmp_path: Path, pico: Path) -> None:
    spec = write_spec(tmp_path / "pico.yaml", pico_values(pico))
    nowhere = {**os.environ, "DASHBOARD": f"http://127.0.0.1:{free_port()}"}
    found = call(nowhere, "submit", spec, "--output", "/x", "--shared", "/", status=1)
    assert len(found.stderr.splitlines()) == 1
    assert nowhere["DASHBOARD"] in found.stderr
