"""The spec package loads no library of the search, of models or of tracking."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "ray", "optuna", "mlflow", "pandas", "sklearn")


def test_a_spec_loads_no_heavy_library() -> None:
    code = f"""
import sys
from cabs_search.spec.load import load
load("roberta-four", locations=False)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
