"""Figures of real data, in which nothing is known to be true."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUE = re.compile(r"\btru(e|th)\b")


def call_reference(figure: "Figure") -> None:
    """Puts `reference` in the place of `true` and `truth` in all words of a figure."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if TRUE.search(text.get_text()):
            text.set_text(TRUE.sub("reference", text.get_text()))
