"""Versions of this program and of the packages that its numbers depend on."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("cabs-search", "torch", "transformers", "ray", "optuna", "mlflow")
"""Packages whose versions the page and MLflow name, beside Python's."""


def versions() -> dict[str, str]:
    """Return the versions of Python, of ``PACKAGES`` and of the git revision, if any."""
    known = {"Python": platform.python_version()} | package_versions(PACKAGES)
    if revision := git("rev-parse", "--short=12", "HEAD"):
        known["git revision"] = revision + (
            ", with changes" if git("status", "--porcelain") else ""
        )
    return known


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:  # such as this one in a checkout that is not installed
            continue
    return installed


def git(*arguments: str) -> str:
    """Return what git prints in the working directory; "" if there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
