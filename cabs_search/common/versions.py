"""Versions of this program and of the packages that its numbers depend on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("cabs-search", "torch", "transformers", "ray", "optuna", "mlflow")
"""Packages whose versions the page names, beside Python's."""


def versions() -> dict[str, str]:
    """Return the versions of Python and PACKAGES, and the git revision if there is one."""
    installed = {name: installed_version(name) for name in PACKAGES}
    known = {"Python": platform.python_version()}
    known |= {name: text for name, text in installed.items() if text}
    if revision := _git("rev-parse", "--short=12", "HEAD"):
        is_changed = _git("status", "--porcelain")
        known["git revision"] = f"{revision}, with changes" if is_changed else revision
    return known


def installed_version(package: str) -> str | None:
    """Return a package's version, or None if it is not installed, as this one in a checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Return what git prints in the working directory; empty if it fails or is not installed."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
