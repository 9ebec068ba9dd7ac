"""Passwords and secrets hidden in addresses before they are shown, logged or kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ADDRESS = re.compile(r"(?:[A-Za-z][\w+.-]*://|(?<!\S)/)\S+")
"""An address, or its path alone, as errors of requests quote it."""
SECRET_PARAMETER = re.compile(
    r"([?&](?!sslkey=)[^=&#\s]*(?:password|passwd|pwd|token|secret|key|user)[^=&#\s]*=)[^&#\s]*",
    re.IGNORECASE,
)


def without_password(text: str) -> str:
    """Return a text with user, password and secret parameters of its addresses hidden."""
    return ADDRESS.sub(lambda address: _hidden(address[0]), text)


def _hidden(url: str) -> str:
    scheme = r"^([^:]*://)"
    if not url.startswith(("http://", "https://")):
        # The password of a database may contain slashes and question marks.
        url = re.sub(scheme + r"[^:/@]*(:[^@]*)?@", r"\1", url)
    url = re.sub(scheme + r"[^/?#]*@", r"\1", url)
    return SECRET_PARAMETER.sub(r"\1***", url)


def without_passwords(plain: Any) -> Any:
    """Return a spec's plain values with the secrets of every text hidden."""
    if isinstance(plain, Mapping):
        return {key: without_passwords(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [without_passwords(value) for value in plain]
    return without_password(plain) if isinstance(plain, str) else plain
