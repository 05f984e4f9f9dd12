"""Hiding secrets in what is shown or sent: logins in addresses, values under secret keys."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

STARS = "***"
_SECRETS = "token|key|secret|password|passwd|passphrase|credentials"
_KEY = re.compile(rf"(^|[._-])({_SECRETS})($|[._-])", re.IGNORECASE)
_LAST = re.compile(rf"(^|[._-])({_SECRETS})($|\.)", re.IGNORECASE)
_WORD = re.compile(r"\S+")
_ARGUMENT = re.compile(r"(-[\w.-]*)=.*", re.DOTALL)
_PAIR = re.compile(r"(?<![\w.-])([\w.-]++)=\S+")


def without_secrets(value: Any, key: str = "") -> Any:
    """Copies plain data; texts under secret keys, and secrets within texts, become stars.

    Args:
        value: Nested mappings, sequences, texts and numbers. Sequences become lists.
        key: Key under which the value stands; it may be dotted.
    """
    if isinstance(value, Mapping):
        return {name: without_secrets(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_secrets(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    return STARS if _KEY.search(key) else hidden(value)


def hidden(text: str) -> str:
    """Hides `user:password@` in URLs, and the values of secret keys as in `--api_key=value`.

    A password may hold anything but blanks: a login ends at the last @ of a word.
    """
    argument = _ARGUMENT.fullmatch(text)
    if argument and _KEY.search(argument[1]):
        return f"{argument[1]}={STARS}"  # one word of a command, in which a value may have blanks
    return _WORD.sub(_without_login, _PAIR.sub(_without_value, text))


def _without_value(pair: re.Match[str]) -> str:
    # Stricter: in the name of a run, key_dim=64 is none.
    return f"{pair[1]}={STARS}" if _LAST.search(pair[1]) else pair[0]


def _without_login(word: re.Match[str]) -> str:
    scheme, mark, rest = word[0].partition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{STARS}@{host}" if at else word[0]
