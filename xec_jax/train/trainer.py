"""What is made once per run: optimizer, compiled steps, the way of a batch to the devices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xec_jax.data.prefetch import prefetch
from xec_jax.data.source import Source
from xec_jax.errors import ConfigError, DataError
from xec_jax.tasks.base import Task, example_batch
from xec_jax.train import mesh as meshes
from xec_jax.train.evaluate import evaluate
from xec_jax.train.optim import make_optimizer, make_schedule
from xec_jax.train.saved import SavedRun, hand_over
from xec_jax.train.signals import StopFlag
from xec_jax.train.step import Tally, TrainState, init_state, make_eval_step, make_train_step
from xec_jax.types import Params


class Trainer:
    """A task made ready for the devices by a config.

    Attributes:
        mesh: The devices.
        mode: jit or pmap.
        global_batch: Events per step over all devices and micro-batches.
        steps_per_epoch: Steps per pass over the training events.
        total_steps: Step at which the run is complete.
        schedule: Learning rate as a function of the step.
        train_step: (state, batch) -> (state, tally).
        eval_step: (params, batch, key) -> tally.

    Raises:
        ConfigError: A value that the engine cannot use.
        DataError: The source lacks an array that the task reads.
    """

    def __init__(self, task: Task, config: ConfigDict, train: Source) -> None:
        self.task, self.config = task, config
        check_spec(task, train)
        _check_numbers(config)
        self.mesh = meshes.make_mesh(config.train.devices)
        self.mode = meshes.check_mode(config.train.parallel)
        self.accum_steps = config.train.grad_accum_steps

        self.eval_size = config.data.batch_size * self.mesh.size
        self.global_batch = self.eval_size * self.accum_steps
        self.put = meshes.batch_putter(self.mesh, self.mode)
        self.keys = frozenset(task.spec) | {"weight", "_position", "_step"}
        self.steps_per_epoch = train.steps_per_epoch(size=self.global_batch, shards=1, train=True)
        self.total_steps = config.train.epochs * self.steps_per_epoch
        if config.train.max_steps:
            self.total_steps = min(self.total_steps, config.train.max_steps)
        optim = config.optim
        self.schedule = make_schedule(
            optim.lr,
            scheduler=optim.lr_scheduler,
            steps_per_epoch=self.steps_per_epoch,
            epochs=config.train.epochs,
            warmup_epochs=optim.warmup_epochs,
            lr_min=optim.lr_min,
            per_step=optim.lr_per_step,
        )
        self.tx = make_optimizer(optim, self.schedule, task.frozen)
        self.train_step = make_train_step(
            task.loss,
            self.tx,
            mesh=self.mesh,
            mode=self.mode,
            accum_steps=self.accum_steps,
            ema_decay=optim.ema_decay,
            skip_nonfinite=config.train.skip_nonfinite,
        )
        self.eval_step = make_eval_step(task.evaluate, mesh=self.mesh, mode=self.mode)

    @property
    def devices(self) -> str:
        """Number and kind of the devices, and how they are used."""
        return f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind} ({self.mode})"

    def fresh_state(self) -> TrainState:
        """Initializes the state in one compiled program, spread to all devices."""

        def build() -> TrainState:
            seed = self.config.seed
            example = jax.tree.map(jnp.asarray, example_batch(self.task.spec, 2))
            params = self.task.init(jax.random.PRNGKey(seed), example)
            with_ema = self.config.optim.ema_decay is not None
            return init_state(params, self.tx, seed=seed, with_ema=with_ema)

        return jax.jit(build, out_shardings=meshes.replicated(self.mesh))()

    def state_from(self, run: SavedRun) -> tuple[TrainState, str]:
        """Starts from the weights of another run: step, optimizer and average are fresh.

        Returns:
            The state, and a sentence that says what was taken.

        Raises:
            CheckpointError: The weights do not fit.
        """
        state = self.fresh_state()
        params, text = hand_over(run, state.params, self.task.record, self.config)
        with_ema = state.ema is not None

        def build(params: Params) -> TrainState:
            return init_state(params, self.tx, seed=self.config.seed, with_ema=with_ema)

        return jax.jit(build, out_shardings=meshes.replicated(self.mesh))(params), text

    def state_shapes(self) -> TrainState:
        """Shapes and dtypes of the state, without making it."""
        return jax.eval_shape(self.fresh_state)

    def try_step(self, train: Source, state: TrainState | None = None) -> float:
        """Makes the first step and returns its loss; nothing is kept."""
        state = self.fresh_state() if state is None else state
        draw = {"size": self.global_batch, "seed": self.config.seed, "put": self.put}
        with prefetch(train, start=0, stop=1, keys=self.keys, **draw) as stream:
            _, tally = self.train_step(state, next(stream).device)
        return Tally.means([tally])["loss"]

    def validate(
        self, params: Any, valid: Mapping[str, Source], stop: StopFlag | None
    ) -> dict[str, dict[str, float]] | None:
        """Evaluates all validation sets; None if stopped in between."""
        results = {}
        for name, source in valid.items():
            metrics = evaluate(
                self.eval_step,
                params,
                source,
                size=self.eval_size,
                put=self.put,
                keys=self.keys,
                seed=self.config.eval.seed,
                stop=lambda: bool(stop),
            )
            if metrics is None:
                return None
            results[name] = self.task.derive(metrics)
        return results


def _check_numbers(config: ConfigDict) -> None:
    smallest = {
        "data.batch_size": 1,
        "data.prefetch_factor": 1,
        "train.grad_accum_steps": 1,
        "train.epochs": 1,
        "train.max_steps": 0,
        "train.save_every": 1,
        "train.keep_last": 1,
        "train.keep_best": 0,
        "train.max_skipped_in_row": 1,
        "eval.every_epochs": 1,
        "log.every": 1,
    }
    for key, least in smallest.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if value < least:
            raise ConfigError(f"{key} is {value}", expected=f"a whole number from {least}")


def check_spec(task: Task, source: Source) -> None:
    """Checks that a source has what a task reads.

    Raises:
        DataError: An array is missing or has another shape.
    """
    for name, (shape, _) in task.spec.items():
        if name not in source.spec:
            raise DataError(
                f"task {task.name} needs {name!r}, which the data do not have",
                expected=f"a branch of this name; found {', '.join(source.spec)}",
                remedy="look at the files, or switch off what needs it in the config",
            )
        if source.spec[name][0] != shape:
            raise DataError(
                f"{name} has shape {source.spec[name][0]} per event in the data",
                expected=f"{shape} for task {task.name}",
            )
