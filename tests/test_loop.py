"""The loop's promises: determinism, resume without a trace, records, best checkpoint, stopping."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import toy

from xec_jax.errors import CheckpointError, DiskError, DivergedError, Preempted
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.hooks import Figures, Hook, RunInfo, TrainingCurves
from xec_jax.train.loggers import ConsoleLogger, JsonlLogger
from xec_jax.train.loop import fit
from xec_jax.train.mesh import make_mesh, replicated
from xec_jax.train.records import read_jsonl
from xec_jax.train.signals import StopFlag
from xec_jax.train.trainer import Trainer

STEPS = 20  # 4 epochs of 5 steps


def train(workdir, config=None, hooks=(), stop=None, poison=(), task=None):
    workdir.mkdir(exist_ok=True)
    source, valid = toy.sources(poison=poison)
    hooks = [JsonlLogger(workdir / "metrics.jsonl"), *hooks]
    config = config or toy.config()
    return fit(task or toy.task(), config, source, valid, workdir=workdir, hooks=hooks, stop=stop)


class StopAfter(Hook):
    """Sets the flag as a signal would, after a step or in the midst of a validation."""

    def __init__(self, stop, step):
        self.stop, self.step = stop, step

    def on_step(self, step):
        if step == self.step:
            self.stop.signal = "SIGTERM"


def same(a, b):
    pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_two_runs_are_equal_to_the_bit(tmp_path):
    first, second = train(tmp_path / "a"), train(tmp_path / "b")
    assert same(first.state, second.state)
    assert int(first.state.step) == STEPS
    assert first.metrics == second.metrics
    other = toy.config()
    other.seed = 4
    assert not same(first.state, train(tmp_path / "c", other).state)


@pytest.mark.parametrize("stop_step", [1, 4, 5, 7, 19])
def test_stopped_and_resumed_equals_undisturbed(tmp_path, stop_step):
    whole = train(tmp_path / "whole")
    stop = StopFlag()
    with pytest.raises(Preempted, match=f"SIGTERM after step {stop_step}") as error:
        train(tmp_path / "cut", hooks=[StopAfter(stop, stop_step)], stop=stop)
    assert error.value.exit_code == 75
    resumed = train(tmp_path / "cut")
    assert resumed.steps_run == STEPS - stop_step
    assert same(whole.state, resumed.state)

    def record(folder):
        return {
            (r["step"], r["split"]): r["loss"]
            for r in read_jsonl(tmp_path / folder / "metrics.jsonl")
            if r["split"] == "valid"
        }

    before, after = record("whole"), record("cut")
    assert before == after, "also where the signal came between an epoch and its validation"


class Crash(Hook):
    def __init__(self, step):
        self.step = step

    def on_step(self, step):
        if step == self.step:
            raise RuntimeError("killed")


def test_a_rate_that_follows_validations_survives_a_late_one(tmp_path):
    """Stopped between step 5 and its validation; killed right after the late validation."""
    config = toy.config()
    config.optim.lr_scheduler, config.optim.lr_patience, config.optim.lr = "plateau", 0, 20.0
    whole = train(tmp_path / "whole", config)
    assert float(whole.state.plateau.scale) < 1, "this rate does follow"
    stop = StopFlag()
    with pytest.raises(Preempted):
        train(tmp_path / "cut", config, hooks=[StopAfter(stop, 5)], stop=stop)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", config, hooks=[Crash(6)])
    resumed = train(tmp_path / "cut", config)
    assert resumed.steps_run == STEPS - 5
    assert same(whole.state, resumed.state)
    keys = [(r["step"], r["split"]) for r in read_jsonl(tmp_path / "cut" / "metrics.jsonl")]
    assert keys.count((5, "valid")) == 1


def test_the_record_of_lost_checkpoints_is_kept(tmp_path, caplog):
    train(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train(tmp_path / "run")
    (lost,) = (tmp_path / "run").glob("metrics.lost-*.jsonl")
    assert lost.read_text() == before
    assert "begins anew" in caplog.text


def test_lost_steps_are_made_again_and_recorded_once(tmp_path):
    """A kill after step 8 leaves the checkpoint of step 6; 7 and 8 must not be there twice."""

    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", hooks=[Crash(9)])
    before = read_jsonl(tmp_path / "cut" / "metrics.jsonl")
    assert before[-1]["step"] == 8
    resumed = train(tmp_path / "cut")
    assert same(train(tmp_path / "whole").state, resumed.state)
    records = read_jsonl(tmp_path / "cut" / "metrics.jsonl")
    keys = [(r["step"], r["split"]) for r in records]
    assert len(keys) == len(set(keys))
    assert max(keys)[0] == STEPS


def test_other_device_counts_continue_the_run(tmp_path):
    stop = StopFlag()
    with pytest.raises(Preempted):
        train(tmp_path / "cut", hooks=[StopAfter(stop, 7)], stop=stop)
    config = toy.config(mesh={"data": 4}, parallel="pmap")
    config.data.batch_size = 2  # per device: the same 8 events per step
    resumed = train(tmp_path / "cut", config)
    whole = train(tmp_path / "whole")
    for a, b in zip(*(jax.tree.leaves(r.state.params) for r in (whole, resumed)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_records(tmp_path):
    train(tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    steps = [r["step"] for r in records if r["split"] == "train"]
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]
    assert [r["step"] for r in records if r["split"] == "valid"] == [5, 10, 15, 20]
    first = records[0]
    for key in ("loss", "loss_all", "grad_norm", "chosen", "lr", "events_per_s", "data_wait"):
        assert np.isfinite(first[key]), key
    losses = [r["loss"] for r in records if r["split"] == "valid"]
    assert losses[-1] < 0.9 * losses[0]


def test_cut_off_line_is_left_out_and_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "split": "train"}) + "\n" + '{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1, "split": "train"}]
    logger = JsonlLogger(path)
    logger.on_start(RunInfo(start_step=1, total_steps=9, steps_per_epoch=3, global_batch=1))
    logger.on_record({"step": 2, "split": "train"})
    assert [r["step"] for r in read_jsonl(path)] == [1, 2]


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(DivergedError, match="skip_nonfinite"):
        train(tmp_path / "run", toy.config(skip_nonfinite=False), poison=(3,))


def test_validation_does_not_depend_on_the_batch_size():
    source, valid = toy.sources()
    params, losses = None, []
    for size, devices in ((8, 1), (3, 1), (2, 4)):
        config = toy.config(mesh={"data": devices})
        config.data.batch_size = size
        trainer = Trainer(toy.task(), config, source)
        params = trainer.fresh_state().params if params is None else jax.device_get(params)
        losses.append(trainer.validate(params, valid)["valid"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_best_and_last_checkpoints_are_kept(tmp_path):
    class Worse(Hook):
        """Notes the validation losses."""

        def on_record(self, record):
            if record["split"] == "valid":
                losses[record["step"]] = record["loss"]

    losses = {}
    config = toy.config(keep_last=1)
    config.optim.lr, config.optim.lr_scheduler, config.optim.warmup_epochs = 3.0, None, 0
    train(tmp_path / "run", config, hooks=[Worse()])
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        best = min(losses, key=losses.get)
        assert checkpoints.best_step == best
        assert checkpoints.steps == sorted({best, STEPS})


def test_finished_run_does_nothing(tmp_path):
    first = train(tmp_path / "run")
    again = train(tmp_path / "run")
    assert again.steps_run == 0
    assert same(first.state, again.state)
    longer = train(tmp_path / "run", toy.config(epochs=6))
    assert longer.steps_run == 10


def test_poisoned_events_are_skipped_and_counted(tmp_path):
    result = train(tmp_path / "run", poison=(3,))
    assert int(result.state.skipped) == 4, "once per epoch"
    assert result.metrics["valid"]["loss"] > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.state.params))


def test_divergence_stops_the_run_and_keeps_good_checkpoints(tmp_path):
    with pytest.raises(DivergedError, match="max_skipped_in_row") as error:
        train(tmp_path / "run", poison=range(39))
    assert error.value.exit_code == 3


def test_checkpoint_of_another_network_is_refused(tmp_path):
    train(tmp_path / "run")
    config = toy.config(epochs=9)
    config.optim.ema_decay = None
    with pytest.raises(CheckpointError, match="ema/kernel: saved"):
        train(tmp_path / "run", config)


# orbax leaves threads of its event loop behind when a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_newest_checkpoint_falls_back(tmp_path, caplog):
    train(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    for path in (folder / str(steps[-1]) / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:10])
    with Checkpoints(folder) as checkpoints:
        trainer = Trainer(toy.task(), toy.config(), toy.sources()[0])
        state = checkpoints.restore(trainer.state_shapes, replicated(make_mesh(1)))
    assert int(state.step) == steps[-2]
    assert f"step {steps[-1]}" in caplog.text
    assert (folder / f"{steps[-1]}.corrupt").is_dir(), "kept, but out of the way"
    again = train(tmp_path / "run")
    assert int(again.state.step) == STEPS
    assert train(tmp_path / "run").steps_run == 0, "the damaged step was saved again"


def test_saving_while_training_goes_on_is_consistent(tmp_path):
    """Buffers are donated to the next step while the save runs: the saved numbers must not move."""
    copies = {}

    class Copy(Hook):
        def on_validation(self, step, params):
            copies[step] = jax.device_get(params)

    train(tmp_path / "run", toy.config(keep_last=9), hooks=[Copy()])
    trainer = Trainer(toy.task(), toy.config(), toy.sources()[0])
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        for step, params in copies.items():
            state = checkpoints.restore(trainer.state_shapes, replicated(make_mesh(1)), step)
            assert same(state.ema, params)


def test_unusable_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file in the way")
    with pytest.raises(DiskError, match="checkpoints"):
        train(tmp_path / "run")


def test_console_shows_a_bar_or_lines(tmp_path, capsys):
    train(tmp_path / "lines", hooks=[ConsoleLogger(("chosen",), bar=False)])
    out = capsys.readouterr().out
    assert "20 parameters on 1 x cpu (jit), 8 events per step" in out
    assert "step 20/20  loss" in out
    assert "events/s" in out
    assert "valid: loss" in out
    train(tmp_path / "bar", hooks=[ConsoleLogger(bar=True)])
    assert "step 20/20" in capsys.readouterr().out


def test_a_figure_that_fails_does_not_end_the_run(tmp_path, caplog):
    def broken(arrays):
        raise ValueError("no ink")

    task = dataclasses.replace(
        toy.task(), predict=lambda params, batch: {"y": batch["x"]}, figures=broken
    )
    source = toy.sources()[1]["valid"]
    hook = Figures(task, source, events=99, workdir=tmp_path / "run")
    assert len(hook.batch["x"]) == len(source), "no more than there are"
    result = train(tmp_path / "run", hooks=[hook], task=task)
    assert int(result.state.step) == STEPS
    assert "no ink" in caplog.text


def test_figures_are_pictures_first_and_print_at_the_end(tmp_path):
    curves = TrainingCurves(tmp_path / "run")
    folder = tmp_path / "run" / "figures"

    class Look(Hook):
        def on_step(self, step):
            if step == 7:
                seen.update(path.name for path in folder.iterdir())

    seen = set()
    train(tmp_path / "run", hooks=[curves, Look()])
    assert seen == {"training_curves.png"}
    names = {path.name for path in folder.iterdir()}
    assert names == {"training_curves.png", "training_curves.pdf"}
