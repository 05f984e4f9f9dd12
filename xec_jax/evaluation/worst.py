"""The events with the highest loss, kept while all of them pass by."""

import heapq
import itertools
from collections.abc import Iterator

import numpy as np

from xec_jax.evaluation.base import Arrays, Drawing
from xec_jax.geometry import INVALID_ABOVE, Detector

KEPT, DRAWN = 10, 5
NAMES = ("npho", "time", "run", "event", "energyTruth", "timeTruth", "uvwTruth", "emiAng")


class WorstEvents:
    """Keeps the events of the highest loss with all their sensors.

    Of equal losses the earlier event stays. Losses that are not finite come first: nothing is
    worse.

    Args:
        n: How many to keep.
    """

    def __init__(self, n: int = KEPT) -> None:
        self.n = n
        self._heap: list[tuple[float, int, dict[str, np.ndarray]]] = []
        self._count = itertools.count()

    def add(self, host: Arrays, found: Arrays, truth: Arrays) -> None:
        """Looks at a batch: its arrays, what was predicted (`loss`, `pred_angle`), its truth."""
        loss = np.nan_to_num(np.asarray(found["loss"], np.float64), nan=np.inf)
        for row, value in enumerate(loss):
            order = -next(self._count)
            if len(self._heap) == self.n and (value, order) <= self._heap[0][:2]:
                continue
            event = {name: np.array(host[name][row]) for name in NAMES if name in host}
            if "pred_angle" in found:
                event["pred_angle"] = np.array(found["pred_angle"][row])
            push = heapq.heappush if len(self._heap) < self.n else heapq.heapreplace
            push(self._heap, (float(value), order, event))

    def ranked(self) -> list[tuple[float, dict[str, np.ndarray]]]:
        """Returns loss and arrays of the kept events, the worst first."""
        return [(loss, event) for loss, _, event in sorted(self._heap, key=lambda e: e[:2])[::-1]]

    def drawings(self, detector: Detector, n: int = DRAWN) -> Iterator[Drawing]:
        """Yields a page for each of the worst events: photons, times, and what is known."""
        from xec_jax.plots.event_page import event_facts, event_page

        for rank, (loss, event) in enumerate(self.ranked()[:n], 1):
            facts = event_facts(
                rank=rank,
                loss=loss,
                run=int(event["run"]) if "run" in event else None,
                event=int(event["event"]) if "event" in event else None,
                energy_gev=_number(event.get("energyTruth")),
                time_ns=_number(event.get("timeTruth")),
                uvw_cm=event.get("uvwTruth"),
                angle_deg=event.get("emiAng"),
                predicted_angle_deg=event.get("pred_angle"),
            )
            mark = event.get("uvwTruth")
            is_known = mark is not None and bool((np.abs(mark) < INVALID_ABOVE).all())
            uv = (float(mark[0]), float(mark[1])) if is_known and mark is not None else None
            figure = event_page(detector, event["npho"], event.get("time"), facts, mark_uv=uv)
            yield Drawing(f"worst_event_{rank}", figure, {"loss": np.array(loss), **event})


def _number(value: np.ndarray | None) -> float | None:
    return None if value is None else float(np.ravel(value)[0])
