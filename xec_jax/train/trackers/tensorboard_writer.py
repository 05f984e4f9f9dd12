"""TensorBoard: event files in the run folder, written without TensorFlow."""

import time
from collections.abc import Sequence

from xec_jax.train.records import Record
from xec_jax.train.trackers.facts import Facts
from xec_jax.train.trackers.names import named


def open_run(facts: Facts, run_id: str | None) -> "TensorboardWriter":
    """Starts an event file in `tensorboard`; TensorBoard shows all files there as one run."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder = facts.workdir / "tensorboard"
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    # Never an old file: a kill may have cut off its last record, and hide all that follow.
    file = (folder / f"events.out.tfevents.{time.time_ns()}").open("xb")
    writer = TensorboardWriter(RecordWriter(file), Event, is_new=is_new)
    writer.add(file_version="brain.Event:2")
    return writer


class TensorboardWriter:
    """An open event file; see `copier.Writer`."""

    run_id = "tensorboard"

    def __init__(self, file, event, *, is_new: bool) -> None:
        self.file, self.event, self.is_new = file, event, is_new

    def add(self, wall_time: float | None = None, **content) -> None:
        """Adds an event and hands it to the operating system."""
        wall_time = time.time() if wall_time is None else wall_time
        self.file.write(self.event(wall_time=wall_time, **content).SerializeToString())
        self.file.flush()

    def write(self, records: Sequence[Record]) -> None:
        """Adds the numbers of each record."""
        for record in records:
            values = [{"tag": k, "simple_value": v} for k, v in named(record).items()]
            self.add(record.get("time"), step=record["step"], summary={"value": values})

    def tell(self, state: str) -> None:
        """Does nothing: TensorBoard knows no end of a run."""

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
