"""Where metrics go: a JSONL file, which is the record of the run, and the console."""

import logging
import math
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from xec_jax.errors import DiskError
from xec_jax.train.hooks import Hook, RunInfo, format_metrics
from xec_jax.train.records import JsonlFile, Record, read_jsonl, write_jsonl

log = logging.getLogger(__name__)


class JsonlLogger(Hook):
    """Appends every record to `metrics.jsonl` in the run folder, one JSON object per line.

    When a run resumes, the records after the restored step are removed first: the steps will be
    made again, and each must be in the file once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = JsonlFile(path)
        self.start = time.monotonic()

    def on_start(self, run: RunInfo) -> None:
        """Cuts the file back to the restored step."""
        self.start = time.monotonic()
        records = read_jsonl(self.path)
        if run.start_step == 0 and any(r["split"] != "train" for r in records):
            # After a validation there was a checkpoint. It is gone, but its record shall not be.
            lost = self.path.with_name(f"metrics.lost-{time.time():.0f}.jsonl")
            self.path.rename(lost)
            log.warning(
                "the checkpoints of this run are gone: it begins anew; its record: %s", lost
            )
        elif records:
            # Also ends a last line that a kill has cut off: the next record must not join it.
            write_jsonl(self.path, [r for r in records if _is_kept(r, run)])

    def on_record(self, record: Record) -> None:
        """Appends one line: durations by a clock that never jumps, and the time of day."""
        elapsed = round(time.monotonic() - self.start, 3)
        self.file.append({**record, "elapsed_s": elapsed, "time": round(time.time(), 3)})

    def on_end(self, step: int) -> None:
        """Writes lines that a full disk has delayed; losing them does not fail a run."""
        try:
            self.file.close()
        except DiskError as error:
            log.warning("%s", error)


def _is_kept(record: Record, run: RunInfo) -> bool:
    """False for what the run is going to do again."""
    if record["step"] == run.start_step and record["split"] != "train":
        return run.is_validated
    return record["step"] <= run.start_step


class ConsoleLogger(Hook):
    """Shows progress: a bar on a terminal, a line per record elsewhere.

    Args:
        names: Validation metrics worth a place on the line, besides the loss.
        bar: Draw a bar; decided by the kind of standard output if None.
    """

    def __init__(self, names: tuple[str, ...] = (), *, bar: bool | None = None) -> None:
        self.names = names
        self.console = Console(soft_wrap=True, highlight=False)
        self.bar = sys.stdout.isatty() if bar is None else bar
        self.progress: Progress | None = None
        self.total = 0

    def on_start(self, run: RunInfo) -> None:
        """Starts the bar at the first step of this process."""
        self.total = run.total_steps
        self.first, self.began = run.start_step, time.monotonic()
        self.on_message(
            f"{run.n_parameters:,} parameters on {run.devices}, {run.global_batch} events per "
            f"step, {run.steps_per_epoch} steps per epoch, {run.total_steps} in all; compiling"
        )
        if self.bar:
            self.progress = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.fields[line]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.progress.add_task(
                "", total=run.total_steps, completed=run.start_step, line="compiling"
            )
            self.progress.start()

    def on_step(self, step: int) -> None:
        """Moves the bar."""
        if step == self.first + 1:
            self.began = time.monotonic()  # the time left does not count compiling
        if self.progress:
            self.progress.update(self.task, completed=step)

    def on_record(self, record: Record) -> None:
        """Shows the last training metrics, and a lasting line for each validation."""
        step = record["step"]
        if record["split"] == "train":
            rate = record.get("events_per_s", math.nan)
            speed = f"{rate:.4g}" if math.isfinite(rate) else "-"
            line = f"loss {record['loss']:.4f}  {speed} events/s"
            if self.progress:
                self.progress.update(self.task, line=line)
            else:
                done = max(step - self.first - 1, 1)
                left = (time.monotonic() - self.began) / done * (self.total - step)
                clock = f"{int(left // 60)}:{int(left % 60):02d}"
                self.on_message(
                    f"step {step}/{self.total}  {line}  lr {record['lr']:.2e}  left {clock}"
                )
            if "limited_by" in record:
                self.on_message(f"epoch {record['epoch']:.4g} limited by {record['limited_by']}")
        else:
            shown = format_metrics(record, ("loss", *self.names))
            self.on_message(f"step {step}/{self.total}  {record['split']}: {shown}")

    def on_message(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False)

    def on_end(self, step: int) -> None:
        """Removes the bar."""
        if self.progress:
            self.progress.stop()
