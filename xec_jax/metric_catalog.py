"""Looks up what a metric is: its unit, its definition, and all of them as a page.

JAX is not imported, so that commands and figures can ask at no cost.

`python -m xec_jax.metric_catalog docs/metrics.md` renews the tables of that page.
"""

import argparse
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xec_jax.errors import EXIT_CODES, ConfigError, run_command
from xec_jax.metric_definitions import ALIASES, CATALOG, QUANTITIES, WORDS, Definition

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
_UNITS = {
    **{name: unit for name, (unit, _) in QUANTITIES.items()},
    **{part: unit for unit, parts in QUANTITIES.values() for part in parts},
}


@functools.cache
def describe(name: str) -> Definition:
    """Looks up a metric.

    Args:
        name: As reported, like `mae_inner_photons`, or one of `ALIASES`.

    Returns:
        Its definition, with the words of the name in place of those in braces.

    Raises:
        ConfigError: No metric has this name.
    """
    known = ALIASES.get(name, name)
    for definition in CATALOG:
        if found := _compiled(definition.name).fullmatch(known):
            words = found.groupdict()
            unit = definition.unit
            if unit.startswith("{"):
                word = words[unit[1:-1]]
                unit = _UNITS[word] if word in _UNITS else describe(word).unit
            text = _fill(definition.text, words)
            if known != name:
                text = f"`{known}`: {text}"
            return replace(definition, name=name, unit=unit, text=text)
    patterns = [definition.name for definition in CATALOG]
    near = difflib.get_close_matches(name, [*patterns, *ALIASES], n=1, cutoff=0)[0]
    raise ConfigError(
        f"there is no metric {name!r}",
        expected=f"a name of docs/metrics.md, perhaps {near}",
    )


def unit_of(name: str) -> str:
    """Returns the unit of a metric, empty if it has none; raises as `describe`."""
    return describe(name).unit


def flat_name(name: str, *, face: str = "", method: str = "") -> str:
    """Names a number of `sensor_metrics` where those of several faces and methods stand together.

    `mae_photons` becomes `mae_inner_photons_disk`, and `rel_mae` becomes `rel_mae_inner_disk`.
    """
    if face:
        is_photons = name.endswith("photons")
        name = name.replace("photons", f"{face}_photons") if is_photons else f"{name}_{face}"
    return f"{name}_{method}" if method else name


def to_markdown() -> str:
    """Returns the tables of the documentation."""
    lines = []
    for group in dict.fromkeys(definition.group for definition in CATALOG):
        lines += [f"## {group}", "", "| name | unit | definition |", "|---|---|---|"]
        for row in CATALOG:
            if row.group == group:
                unit = f"of `{row.unit}`" if row.unit.startswith("{") else row.unit
                lines.append(f"| `{row.name}` | {unit} | {row.text} |")
        lines.append("")
    lines += ["## Words", "", "| in a name | stands for |", "|---|---|"]
    words = WORDS | {"percentile": ("each name above with 68pct in it",)}
    lines += [f"| `{{{word}}}` | {', '.join(words[word])} |" for word in words]
    lines += ["", "## Names of the predecessor", "", "| there | here |", "|---|---|"]
    lines += [f"| `{old}` | `{name}` |" for old, name in ALIASES.items()]
    return "\n".join(lines)


def renewed(page: str) -> str:
    """Puts the present tables between the two marks of a page.

    Raises:
        ConfigError: The page does not have the marks.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ConfigError("the page has no place for the tables", expected=f"{BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{to_markdown()}\n\n{END}{tail}"


def main(argv: Sequence[str]) -> int:
    """Renews the tables of a page, or prints them."""
    parser = argparse.ArgumentParser(
        "python -m xec_jax.metric_catalog",
        description="Prints the definitions of all metrics, or renews them in a page.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("page", nargs="?", type=Path, help="such as docs/metrics.md")
    page = parser.parse_args(argv).page
    if page is None:
        print(to_markdown())
    else:
        page.write_text(renewed(page.read_text()))
    return 0


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\[", "(?:").replace(r"\]", ")?")
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{_either(m[1])})", text))


def _either(word: str) -> str:
    return "|".join(map(re.escape, WORDS[word]))


def _fill(text: str, words: Mapping[str, str | None]) -> str:
    """Puts words in place of braces; a bracket with a word that is missing goes."""

    def part(found: re.Match[str]) -> str:
        inside = re.findall(r"{(\w+)}", found[1])
        return found[1] if all(words.get(word) for word in inside) else ""

    return re.sub(
        r"{(\w+)}", lambda m: words.get(m[1]) or m[0], re.sub(r"\[([^\]]*)\]", part, text)
    )


if __name__ == "__main__":
    run_command(main)
