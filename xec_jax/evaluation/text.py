"""Results as text: columns for those who do not read ROOT, tables for a terminal."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xec_jax.config import write_text
from xec_jax.evaluation.base import Table


def write_csv(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns (n,) with their names in the first line; the file is complete or absent.

    Numbers have seven digits, all that float32 knows; what is not known is `nan`.
    """
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(f"{value:.7g}" for value in row) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def to_text(table: Table) -> str:
    """Returns a table in columns of equal width, numbers with four digits, whole ones in full."""
    cells = [
        [cell if isinstance(cell, str) else _number(cell) for cell in row] for row in table.rows
    ]
    lines = [list(table.columns), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return f"{table.title}\n{text}\n" + (f"{table.note}\n" if table.note else "")


def _number(value: float) -> str:
    if value != value:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"
