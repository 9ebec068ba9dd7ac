"""Secrets are hidden in every address of a text."""

from __future__ import annotations

from cabs_search.common.redact import without_password, without_passwords


def test_every_address_in_a_message_is_hidden() -> None:
    text = (
        "http://me:PW@a:1/x?token=T&n=1 failed (postgresql://u:PW@b/db?api_key=K#f); me@home?key=k"
    )
    shown = "http://a:1/x?token=***&n=1 failed (postgresql://b/db?api_key=***#f); me@home?key=k"
    assert without_password(text) == shown


def test_plain_values_keep_their_form() -> None:
    plain = {"search": {"storage": "mysql://u:PW@h/d"}, "nm": ["2:8"], "trials": 3, "none": None}
    assert without_passwords(plain) == plain | {"search": {"storage": "mysql://h/d"}}
