"""A Ray cluster of two nodes on this machine, each with a vector cache of its own.

Ray's processes belong to a child process, which runs this file: the test's own Ray stays as it is.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
HIDING = """
import os, pathlib
hidden, see = os.environ.get("HIDDEN"), os.stat
def stat(path, *given, **named):
    if hidden and isinstance(path, (str, pathlib.PurePath)) and str(path).startswith(hidden):
        raise FileNotFoundError(2, "hidden", str(path))
    return see(path, *given, **named)
os.stat = stat
"""
"""A ``sitecustomize.py`` that hides a folder, as if it were on another machine's disk."""


class TwoNodes:
    """A head and a second node, on loopback, with one core each."""

    def __init__(self, folder: Path, hidden: Path) -> None:
        """Start them.

        Args:
            folder: gets the caches ``head`` and ``node``.
            hidden: a folder that the second node does not see.

        """
        (folder / "site").mkdir(parents=True)
        (folder / "site" / "sitecustomize.py").write_text(HIDING)
        self.temporary = tempfile.mkdtemp(prefix="r-")  # Ray's sockets must have short names
        self.environment = os.environ | {
            "CABS_SEARCH_CACHE": str(folder / "head"),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # else Ray makes a reachable address of a loopback one
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TMPDIR": self.temporary,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        node = {
            "CABS_SEARCH_CACHE": str(folder / "node"),
            "PYTHONPATH": f"{folder / 'site'}:{ROOT}",
            "HIDDEN": str(hidden),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(node)],
            env=self.environment, cwd=ROOT, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        started = json.loads(self._process.stdout.readline() or "{}")
        self.address: str = started["address"]
        self._raylet: int = started["raylet"]

    def kill_node(self) -> None:
        """Kill the second node's raylet with signal 9."""
        os.kill(self._raylet, signal.SIGKILL)

    def stop(self) -> None:
        """End both nodes."""
        with suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._process.communicate("end\n", timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)


def main() -> None:
    """Start two nodes, print how to reach them, and end them when a line comes."""
    from ray.cluster_utils import Cluster

    here = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
    head = here | {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**here, env_vars=json.loads(sys.argv[1]))
    (raylet,) = second.all_processes["raylet"]
    print(json.dumps({"address": cluster.address, "raylet": raylet.process.pid}), flush=True)
    sys.stdin.readline()
    cluster.shutdown()


if __name__ == "__main__":
    main()
