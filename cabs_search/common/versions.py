"""Versions of this program and of the packages that its numbers depend on."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("cabs-search", "torch", "transformers", "ray", "optuna", "mlflow")
"""Packages whose versions the page and MLflow name, beside Python's."""


def versions() -> dict[str, str]:
    """Return the versions of Python and PACKAGES, and the git revision if there is one."""
    known = {"Python": platform.python_version()} | package_versions(PACKAGES)
    if revision := git("rev-parse", "--short=12", "HEAD"):
        is_changed = git("status", "--porcelain")
        known["git revision"] = f"{revision}, with changes" if is_changed else revision
    return known


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages that are installed; this one is not in a checkout."""
    known = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            known[package] = version(package)
    return known


def git(*arguments: str) -> str:
    """Return what git prints in the working directory; empty if it fails or is not installed."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
