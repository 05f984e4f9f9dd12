"""Weights & Biases: its server, or files to be uploaded later with WANDB_MODE=offline."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from xec_jax.errors import ConfigError
from xec_jax.train.records import Record
from xec_jax.train.trackers.facts import Facts, artifacts, send_each
from xec_jax.train.trackers.names import named

EXIT_CODE = {"done": 0, "failed": 1, "preempted": 143, "interrupted": 130, "lost": 137}


def open_run(facts: Facts, run_id: str | None) -> "WandbWriter":
    """Continues a run, or starts one in the project `facts.experiment`.

    Raises:
        ConfigError: No key in the environment; the package would ask for one at the terminal.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError("WANDB_API_KEY is not set", remedy="set it, or WANDB_MODE=offline")
    wandb = _import_wandb()
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", facts.experiment),
        name=facts.run_name,
        id=run_id,
        resume="allow",
        dir=facts.workdir,
        config={**facts.params, **facts.tags},
        allow_val_change=True,
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, init_timeout=30,
            x_disable_stats=True, x_disable_machine_info=True,
        ),
    )  # fmt: skip
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return WandbWriter(run, facts, is_new=run_id is None)


class WandbWriter:
    """An open W&B run; see `copier.Writer`."""

    def __init__(self, run: Any, facts: Facts, *, is_new: bool) -> None:
        self.run, self.run_id, self.facts, self.is_new = run, run.id, facts, is_new
        self.state = "running"

    def write(self, records: Sequence[Record]) -> None:
        """Hands the numbers to the package, which uploads them by itself."""
        for record in records:
            # W&B's own step may not go back, which a resumed run does: ours is a metric.
            row: dict[str, Any] = {**named(record), "step": record["step"]}
            if "time" in record:
                row["_timestamp"] = record["time"]
            self.run.log(row)

    def tell(self, state: str) -> None:
        """Keeps the state: W&B is told with the end of the connection."""
        self.state = state

    def close(self) -> None:
        """Hands over the files and waits until everything is uploaded."""
        folder = self.facts.workdir
        save = partial(self.run.save, base_path=str(folder), policy="now")
        try:
            files = artifacts(folder)
            send_each({str(p.relative_to(folder)): partial(save, str(p)) for p in files})
        finally:
            self.run.finish(EXIT_CODE[self.state])


def _import_wandb() -> Any:
    """Imports the package and silences it, for all of this process."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb
