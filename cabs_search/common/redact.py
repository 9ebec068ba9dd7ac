"""Hide passwords and secrets in addresses before they are shown or logged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def without_password(url: str) -> str:
    """An address as it may be shown: without user, password and secret parameters; any other text
    as it is.
    """
    if "://" not in url:
        return url
    kind = r"^([A-Za-z][\w+.-]*://)"
    if not url.startswith(
        ("http://", "https://")
    ):  # a database's password may have slashes and question marks
        url = re.sub(kind + r"[^:/@]*(:[^@]*)?@", r"\1", url)
    url = re.sub(kind + r"[^/?#]*@", r"\1", url)
    parameter = r"([?&][^=&#]*(?:password|passwd|pwd|token|secret|key)[^=&#]*=)[^&#]*"
    return re.sub(parameter, r"\1***", url, flags=re.IGNORECASE)


def without_passwords(plain: Any) -> Any:
    """A spec's plain values, for everybody's eyes."""
    if isinstance(plain, Mapping):
        return {key: without_passwords(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [without_passwords(value) for value in plain]
    return without_password(plain) if isinstance(plain, str) else plain


def without_logins(text: str) -> str:
    """A text, such as a tracking URI, without the user and password of the addresses in it."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
