"""What is made once per run: optimizer, compiled steps, the way of a batch to the devices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.prefetch import Prefetcher, prefetch
from xec_jax.data.source import Source
from xec_jax.errors import ConfigError, DataError
from xec_jax.tasks.base import Task, example_batch
from xec_jax.train import distributed
from xec_jax.train import mesh as meshes
from xec_jax.train.evaluate import evaluate
from xec_jax.train.optim import hold, make_optimizer
from xec_jax.train.saved import SavedRun, hand_over
from xec_jax.train.schedules import make_schedule
from xec_jax.train.step import Tally, TrainState, init_state, make_eval_step, make_train_step
from xec_jax.types import Params


class Trainer:
    """A task made ready for the devices by a config.

    Attributes:
        mesh: The devices.
        mode: jit or pmap.
        shard: This process and the number of processes, as `Source.batch` wants it.
        global_batch: Events per step over all devices, processes and micro-batches.
        steps_per_epoch: Steps per pass over the training events.
        total_steps: Step at which the run is complete.
        schedule: Learning rate as a function of the step.
        state_shapes: Shapes and dtypes of the state, which is not made for them.
        shardings: Where each array of the state lies.
        train_step: (state, batch) -> (state, tally).
        eval_step: (params, batch, key) -> tally.

    Raises:
        ConfigError: A value that the engine cannot use.
        DataError: The source lacks an array that the task reads.
    """

    def __init__(self, task: Task, config: ConfigDict, train: Source) -> None:
        self.task, self.config = task, config
        check_spec(task, train)
        check_numbers(config)
        self.mesh = meshes.make_mesh(config.train.mesh.data, config.train.mesh.model)
        self.mode = meshes.check_mode(config.train.parallel, config.train.mesh.model)
        self.shard = distributed.index(), distributed.count()
        self.accum_steps = config.train.grad_accum_steps

        self.eval_size = config.data.batch_size * self.mesh.size
        self.global_batch = self.eval_size * self.accum_steps
        self.put = meshes.batch_putter(self.mesh, self.mode)
        whole = meshes.replicated(self.mesh)
        key = np.asarray(jax.random.PRNGKey(config.eval.seed))
        self.eval_key = self.for_steps(jax.device_put(key, whole))
        self.keys = frozenset(task.spec) | {"weight", "_position", "_step"}
        self.steps_per_epoch = train.steps_per_epoch(size=self.global_batch, shards=1, train=True)
        self.total_steps = config.train.epochs * self.steps_per_epoch
        if config.train.max_steps:
            self.total_steps = min(self.total_steps, config.train.max_steps)
        optim = config.optim
        self.schedule = make_schedule(
            optim, steps_per_epoch=self.steps_per_epoch, epochs=config.train.epochs
        )
        self._after_validation = jax.jit(self.schedule.after_validation, out_shardings=whole)
        self.tx = make_optimizer(optim, self.schedule, task.frozen)
        self.state_shapes = jax.eval_shape(self._fresh)
        self.shardings = meshes.state_shardings(self.mesh, self.state_shapes)
        self.train_step = make_train_step(
            hold(task.loss, (*task.frozen, *optim.frozen)),
            self.tx,
            mesh=self.mesh,
            mode=self.mode,
            accum_steps=self.accum_steps,
            ema_decay=optim.ema_decay,
            ema_warmup=optim.ema_warmup,
            skip_nonfinite=config.train.skip_nonfinite,
            state_shardings=self.shardings,
        )
        self.eval_step = make_eval_step(
            task.evaluate,
            mesh=self.mesh,
            mode=self.mode,
            params_shardings=self.shardings.eval_params,
        )

    @property
    def devices(self) -> str:
        """Number and kind of the devices, and how they are used."""
        n_processes = self.shard[1]
        where = f", {n_processes} processes" if n_processes > 1 else ""
        return f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind} ({self.mode}{where})"

    def _fresh(self) -> TrainState:
        example = jax.tree.map(jnp.asarray, example_batch(self.task.spec, 2))
        return self._begin(self.task.init(jax.random.PRNGKey(self.config.seed), example))

    def _begin(self, params: Params) -> TrainState:
        with_ema = self.config.optim.ema_decay is not None
        state = init_state(params, self.tx, seed=self.config.seed, with_ema=with_ema)
        return state.replace(plateau=self.schedule.init())

    def fresh_state(self) -> TrainState:
        """Initializes the state in one compiled program, spread to all devices."""
        return jax.jit(self._fresh, out_shardings=self.shardings)()

    def state_from(self, run: SavedRun) -> tuple[TrainState, str]:
        """Starts from the weights of another run: step, optimizer and average are fresh.

        Returns:
            The state, and a sentence that says what was taken.

        Raises:
            CheckpointError: The weights do not fit.
        """
        fresh = jax.device_get(jax.jit(self._fresh)().params)
        params, text = hand_over(run, fresh, self.task.record, self.config)
        params = jax.device_get(params)  # every process has them: none are tied to its devices
        return jax.jit(self._begin, out_shardings=self.shardings)(params), text

    def stream(
        self, train: Source, start: int, stop: int, interrupt: Callable[[], bool] = lambda: False
    ) -> Prefetcher:
        """Reads the training events of some steps ahead; those of this process."""
        data = self.config.data
        return prefetch(
            train,
            start=start,
            stop=stop,
            size=self.global_batch // self.shard[1],
            shard=self.shard,
            seed=self.config.seed,
            depth=data.prefetch_factor,
            put=self.put,
            keys=self.keys,
            timeout_s=data.timeout_s,
            interrupt=interrupt,
        )

    def try_step(self, train: Source, state: TrainState | None = None) -> float:
        """Makes the first step and returns its loss; nothing is kept."""
        state = self.fresh_state() if state is None else state
        with self.stream(train, 0, 1) as stream:
            _, tally = self.train_step(state, next(stream).device)
        return Tally.means([tally])["loss"]

    def after_validation(self, state: TrainState, loss: float) -> TrainState:
        """Tells the validation loss to a schedule that depends on it."""
        if state.plateau is None:
            return state
        plateau = meshes.global_arrays(state.plateau, self.mesh)
        plateau = self._after_validation(plateau, np.float32(loss))
        return state.replace(plateau=self.for_steps(plateau))

    def for_steps(self, state: Any) -> Any:
        """Returns a state, or a part of it, as the training step returns it itself."""
        return meshes.for_steps(state, self.mesh, self.mode)

    def validate(
        self,
        params: Any,
        valid: Mapping[str, Source],
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, dict[str, float]] | None:
        """Evaluates all validation sets; None if `stop` said so in between."""
        results = {}
        for name, source in valid.items():
            metrics = evaluate(
                self.eval_step,
                params,
                source,
                size=self.eval_size,
                put=self.put,
                keys=self.keys,
                key=self.eval_key,
                timeout_s=self.config.data.timeout_s,
                stop=stop,
            )
            if metrics is None:
                return None
            results[name] = self.task.derive(metrics)
        return results


def check_numbers(config: ConfigDict) -> None:
    """Checks the ranges of what the engine counts with.

    Raises:
        ConfigError: A number that is too small.
    """
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
        "train.max_skipped_share": 0,
        "train.save_minutes": 0,
        "train.mesh.data": 0,
        "train.mesh.model": 1,
        "eval.every_epochs": 1,
        "log.every": 1,
    }
    for key, least in smallest.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if value < least:
            raise ConfigError(f"{key} is {value}", expected=f"a number from {least}")
    if config.data.timeout_s <= 0:
        raise ConfigError(f"data.timeout_s is {config.data.timeout_s}", expected="seconds above 0")


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
