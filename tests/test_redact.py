"""Secrets in what is shown: none stays, and nothing else goes."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xec_jax.redact import STARS, hidden, without_secrets

SECRETS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=3).map(
    lambda text: f"sesame{text}"
)


@given(SECRETS)
@example("sesame/with/slashes")
@example("sesame@with@ats")
@example("sesame://me:you@there")
def test_no_password_in_any_url(password):
    for before, after in (("", "host/db"), ("cannot reach ", "host: no answer"), ("a@b ", "h")):
        assert hidden(f"{before}mysql://me:{password}@{after}") == f"{before}mysql://***@{after}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://token@host", "https://***@host"),
        ("--config.log.uri=http://me:sesame@host", "--config.log.uri=http://***@host"),
        ("http://a:sesame@b and http://c:sesame@d", "http://***@b and http://***@d"),
        ("http://host/db?password=sesame", "http://host/db?password=***"),
        ("--config.log.api_password=open sesame", "--config.log.api_password=***"),
        ("argument '--config.s3.secret=sesame' does not fit", None),
        (
            "WANDB_API_KEY=sesame python -m xec_jax.train",
            "WANDB_API_KEY=*** python -m xec_jax.train",
        ),
        ("runs/key_dim=64-lr=1e-3", "runs/key_dim=64-lr=1e-3"),
        ("me@host is no URL, nor is a://b", "me@host is no URL, nor is a://b"),
        ("https://host/path, lr=1e-3, monkey=5", "https://host/path, lr=1e-3, monkey=5"),
        ("two  blanks\nand lines", "two  blanks\nand lines"),
    ],
)
def test_texts(text, shown):
    assert hidden(text) == shown if shown else "sesame" not in hidden(text)


@pytest.mark.parametrize(
    "key",
    ["password", "api_password", "API-KEY", "s3.secret", "token.0", "my_passwd", "db.passphrase.a"],
)
@pytest.mark.parametrize("value", ["sesame", ["x", ["sesame"]], {"inner": ("sesame",)}])
def test_secret_keys_hide_all_texts_below(key, value):
    assert "sesame" not in json.dumps(without_secrets({"log": {key: value}, "a": 1}))


def test_everything_else_stays():
    data = {"key_dim": 64, "monkey": "a", "tokens": None, "lr": [1e-3, True], "b": {"c": "x=1"}}
    assert without_secrets(data) == data
    assert STARS not in json.dumps(without_secrets({"optim": {"no_decay": ["bias", "key_scale"]}}))


def test_long_texts_take_no_time():
    """Each kind of hostile text would take minutes if it were searched from every character."""
    for piece in ("://", "a=", "@", "x", "-", "key.", "://@", " ="):
        assert len(hidden(piece * 200_000)) >= 3
