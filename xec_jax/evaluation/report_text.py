"""How texts and numbers are written into a page: escaped, in one line, without secrets."""

import json
import math
import re
from html import escape
from typing import Any

from xec_jax.redact import hidden

STARTS_WITH_NUMBER = re.compile(r"[<>~±]? ?[-+]?\.?\d")


def number_text(value: float) -> str:
    """Writes a number with four significant digits; whole numbers are written in full."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return str(int(value))
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if 1e-3 <= size < 1e6:
        digits = max(3 - math.floor(math.log10(float(f"{size:.3e}"))), 0)
        return f"{value:.{digits}f}"
    return f"{value:.3e}"


def plain(value: Any) -> str:
    """Escapes a text: one line, no control characters, no secrets."""
    shown = "".join(c if c.isprintable() else " " for c in hidden(str(value)))
    return escape(" ".join(shown.split()))


def prose(value: Any) -> str:
    """Escapes a text in which backticks mark code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", plain(value))


def exact(value: Any) -> str:
    """Writes a value of a config, which must not be rounded."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def is_number(value: Any) -> bool:
    """Whether a cell of a table holds a number."""
    # Numbers of numpy are none of Python's, but they can be made into one.
    return hasattr(value, "__float__") and not isinstance(value, bool | str)


def cell(value: Any) -> str:
    """Writes a cell of a table; None is an empty one, a number that is not finite is pale."""
    if value is None:
        return ""
    if not is_number(value):
        return prose(value)
    value = value if isinstance(value, int) else float(value)
    return number_text(value) if math.isfinite(value) else f'<span class="missing">{value}</span>'
