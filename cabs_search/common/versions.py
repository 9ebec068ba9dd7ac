"""Versions of this program and of the packages that its numbers depend on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("cabs-search", "torch", "transformers", "ray", "optuna", "mlflow")
"""Whose versions the page names, beside Python's."""


def versions() -> dict[str, str]:
    """Of this program and of what its numbers depend on."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if revision := _git("rev-parse", "--short=12", "HEAD"):
        found["git revision"] = revision + (
            ", with changes" if _git("status", "--porcelain") else ""
        )
    return found


def _git(*arguments: str) -> str:
    """What git says of the working directory; nothing where there is no git, or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # such as this one in a checkout that is not installed
        return None
