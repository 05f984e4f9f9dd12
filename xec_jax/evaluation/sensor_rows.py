"""Hidden sensors of a batch as flat rows, and the trees that hold sensors.

Source: trees of the PyTorch predecessor; a missing value is NaN there where it was -999.
"""

import numpy as np

from xec_jax.evaluation.base import Arrays
from xec_jax.transforms import SensorTransform


def identifiers(host: Arrays) -> dict[str, np.ndarray]:
    """Run and event numbers int64 (n,), -1 where the files do not say, and the running index."""
    n = len(host["weight"])
    missing = np.full(n, -1, np.int64)
    return {
        "index": host["_position"].astype(np.int32),
        "run": host["run"].astype(np.int64) if "run" in host else missing,
        "event": host["event"].astype(np.int64) if "event" in host else missing,
    }


def chosen(found: Arrays, on: np.ndarray) -> dict[str, np.ndarray]:
    """Picks sensors of a batch as rows.

    Args:
        found: `hidden.inspected` arrays of n events.
        on: bool (n, s), the sensors to pick.

    Returns:
        `row` and `sensor` int (k,); `truth` and `predicted` float32 (k, 2), normalized, NaN where
        the truth is no measurement, or the channel is not predicted; `timed` bool (k,).
    """
    row, sensor = np.nonzero(on)
    truth = found["x"][row, sensor]
    truth = np.where(found["valid"][row, sensor], truth, np.float32(np.nan))
    predicted = found["predicted"][row, sensor]
    predicted = np.pad(
        predicted, ((0, 0), (0, 2 - predicted.shape[1])), constant_values=np.float32(np.nan)
    )
    timed = found["timed"][row, sensor]
    return {"row": row, "sensor": sensor, "truth": truth, "predicted": predicted, "timed": timed}


def event_rows(
    host: Arrays, found: Arrays, transform: SensorTransform, fill_npho: float | None = None
) -> dict[str, np.ndarray]:
    """Rows of the autoencoder's tree: all sensors of an event, normalized.

    `fill_npho` is what the network is shown in place of hidden counts, if not the sentinel.

    Branches `event_id` int32 (place in the files), `run_number`, `event_number` int64; float32
    [4760] `truth_npho`, `truth_time`, `mask` (1 where hidden), `masked_npho`, `masked_time` (what
    the network was shown), `pred_npho`, `pred_time`, `err_npho`, `err_time` = pred - truth, and
    bool `npho_valid`, `time_valid`. Where the truth is no measurement, it is the sentinel that the
    network is shown, and the error NaN.
    """
    ids = identifiers(host)
    table: dict[str, np.ndarray] = {
        "event_id": ids["index"],
        "run_number": ids["run"],
        "event_number": ids["event"],
        "mask": found["hidden"].astype(np.float32),
    }
    npho = transform.sentinel_npho if fill_npho is None else fill_npho
    sentinels = (npho, transform.sentinel_time)
    for i, (channel, sentinel) in enumerate(zip(("npho", "time"), sentinels, strict=True)):
        truth = found["x"][..., i].astype(np.float32)
        table[f"truth_{channel}"] = truth
        table[f"masked_{channel}"] = np.where(found["hidden"], np.float32(sentinel), truth)
        predicted = np.full_like(truth, np.nan)
        if i < found["predicted"].shape[-1]:
            predicted = found["predicted"][..., i].astype(np.float32)
        table[f"pred_{channel}"] = predicted
        error = predicted - truth
        table[f"err_{channel}"] = np.where(found["valid"][..., i], error, np.float32(np.nan))
        table[f"{channel}_valid"] = found["valid"][..., i]
    return table


def hidden_rows(host: Arrays, picked: Arrays, face: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the inpainter's tree: one hidden sensor each, normalized.

    Branches `event_idx` int32 (place in the files), `run_number`, `event_number` int64,
    `sensor_id`, `face` int32 (code in the order of `FACES`), float32 `truth_npho`, `truth_time`,
    `pred_npho`, `pred_time`, `error_npho`, `error_time` = pred - truth, NaN for what is not known,
    and bool `npho_valid`, `time_valid`: whether the error is a number.
    """
    ids, row, sensor = identifiers(host), picked["row"], picked["sensor"]
    table: dict[str, np.ndarray] = {
        "event_idx": ids["index"][row],
        "run_number": ids["run"][row],
        "event_number": ids["event"][row],
        "sensor_id": sensor.astype(np.int32),
        "face": face[sensor].astype(np.int32),
    }
    for i, channel in enumerate(("npho", "time")):
        truth, predicted = picked["truth"][:, i], picked["predicted"][:, i]
        table[f"truth_{channel}"] = truth.astype(np.float32)
        table[f"pred_{channel}"] = predicted.astype(np.float32)
        table[f"error_{channel}"] = (predicted - truth).astype(np.float32)
        table[f"{channel}_valid"] = np.isfinite(predicted - truth)
    return table
