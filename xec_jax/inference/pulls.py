"""How honest the uncertainties are that come with predictions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

SPREADS = ("_std", "_sigma")


class Pulls:
    """Collects what a calibration needs while predictions pass by."""

    def __init__(self) -> None:
        self.kept: dict[str, list[np.ndarray]] = {}

    def watch(self, rows: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Passes rows on and keeps predictions, uncertainties and truth."""
        for chunk in rows:
            for name in [n.removeprefix("true_") for n in chunk if n.startswith("true_")]:
                spreads = [f"pred_{name}{s}" for s in SPREADS if f"pred_{name}{s}" in chunk]
                for key in (f"true_{name}", f"pred_{name}", *spreads) if spreads else ():
                    self.kept.setdefault(key, []).append(chunk[key])
            yield chunk

    def report(self, output: Path) -> None:
        """Prints how honest the uncertainties are, and draws it beside the output."""
        arrays = {key: np.concatenate(parts) for key, parts in self.kept.items()}
        if not arrays:
            return
        from xec_jax.plots.calibration import calibration, calibration_figure
        from xec_jax.plots.style import save

        results = calibration(arrays)
        if not results:
            print("  no spread anywhere: do these networks have dropout, or different weights?")
            return
        for name, result in results.items():
            print(
                f"  {name}: {result.coverage(1.0):.1%} within one sigma (68.3 % expected), ", end=""
            )
            print(f"width of the pulls {result.width:.2f}")
        save(calibration_figure(results), output.with_name(f"{output.stem}_calibration"))
