"""Passwords and secrets in addresses, hidden before they are shown or logged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SCHEME = r"[A-Za-z][\w+.-]*://"
SECRET_PARAMETER = r"[?&][^=&#\s]*(?:password|passwd|pwd|token|secret|key)[^=&#\s]*="


def without_password(text: str) -> str:
    """Hide user, password and secret parameters of an address, or of all addresses in a text."""
    # An address that stands alone is hidden to its end; one in a sentence ends at a space.
    within = "." if re.match(SCHEME, text) else r"\S"
    text = re.sub(SCHEME + within + "+", lambda url: _without_login(url[0]), text, flags=re.DOTALL)
    value = rf"(?:(?![&#]){within})*"
    return re.sub(rf"({SECRET_PARAMETER}){value}", r"\1***", text, flags=re.IGNORECASE | re.DOTALL)


def _without_login(url: str) -> str:
    scheme, rest = re.split(r"(?<=://)", url, maxsplit=1)
    # A database's password may have slashes and question marks.
    if scheme not in ("http://", "https://"):
        rest = re.sub(r"^[^:/@]*(:[^@]*)?@", "", rest)
    return scheme + re.sub(r"^[^/?#]*@", "", rest)


def without_passwords(plain: Any) -> Any:
    """Hide secrets in every text of a spec's plain values."""
    if isinstance(plain, Mapping):
        return {key: without_passwords(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [without_passwords(value) for value in plain]
    return without_password(plain) if isinstance(plain, str) else plain
