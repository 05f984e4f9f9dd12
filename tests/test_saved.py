"""Weights from one run to another: what is taken, what is refused, and what stays frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from ml_collections import ConfigDict

from xec_jax.errors import CheckpointError
from xec_jax.train.loop import fit
from xec_jax.train.saved import SavedRun, hand_over, load_run
from xec_jax.train.trainer import Trainer
from xec_jax.train.workdir import open_workdir

RECORD = {
    "geometry": "abc",
    "detector": "pool3x3",
    "normalization": {"scale": 1.0, "rule": "positive"},
    "other": (1, 2),
}


CONFIG = ConfigDict({"model": {"encoder_dim": 64, "dropout": 0.1}, "data": {}})


def run_of(**modules):
    """A run whose modules hold one kernel each."""
    params = {name: {"kernel": np.full(shape, 7.0)} for name, shape in modules.items()}
    record = {k: v for k, v in RECORD.items() if k != "other"}
    return SavedRun(CONFIG, params, 12, True, record)


def fresh(**modules):
    return {name: {"kernel": jnp.zeros(shape)} for name, shape in modules.items()}


def test_shared_modules_are_taken_and_the_rest_stays_fresh():
    new = fresh(encoder=(3, 2), head_energy=(4,))
    params, text = hand_over(run_of(encoder=(3, 2), decoder_us=(9,)), new, RECORD, CONFIG)
    assert (params["encoder"]["kernel"] == 7).all()
    assert (params["head_energy"]["kernel"] == 0).all()
    assert set(params) == set(new)
    assert "loaded 6 moving average of step 12: encoder" in text
    assert "fresh: head_energy" in text
    assert "left behind: decoder_us" in text


@pytest.mark.parametrize(
    ("there", "record", "words"),
    [
        ({"decoder": (3, 2)}, RECORD, ["nothing to start from", "decoder", "encoder"]),
        ({"encoder": (3, 4)}, RECORD, ["encoder/kernel", "(3, 4) there", "(3, 2) here"]),
        (
            {"encoder": (3, 2)},
            RECORD | {"geometry": "xyz", "detector": "pool1x1"},
            ["geometry: abc there, xyz here", "detector: pool3x3 there, pool1x1 here"],
        ),
        (
            {"encoder": (3, 2)},
            RECORD | {"normalization": {"scale": 2.0, "rule": "positive"}},
            ["normalization", "'scale': 1.0", "'scale': 2.0"],
        ),
    ],
)
def test_weights_that_do_not_fit(there, record, words):
    with pytest.raises(CheckpointError) as caught:
        hand_over(run_of(**there), fresh(encoder=(3, 2)), record, CONFIG)
    for word in words:
        assert word in str(caught.value)


def test_a_head_whose_numbers_mean_something_else_stays_fresh():
    """Another loss or another scale of the output: equal shapes are not enough."""
    there = run_of(encoder=(3, 2), head_energy=(4,), head_angle=(2,))
    there.record["modules"] = {"head_energy": {"std": [1.0]}, "head_angle": {"std": [5.0]}}
    record = RECORD | {"modules": {"head_energy": {"std": (2.0,)}, "head_angle": {"std": (5.0,)}}}
    params, text = hand_over(
        there, fresh(encoder=(3, 2), head_energy=(4,), head_angle=(2,)), record, CONFIG
    )
    assert (params["head_energy"]["kernel"] == 0).all()
    assert (params["head_angle"]["kernel"] == 7).all()
    assert "fresh: head_energy" in text


def test_the_keys_behind_a_misfit_are_named():
    here = ConfigDict({"model": {"encoder_dim": 128, "dropout": 0.0, "new": 1}, "data": {}})
    with pytest.raises(CheckpointError) as caught:
        hand_over(run_of(encoder=(3, 4)), fresh(encoder=(3, 2)), RECORD, here)
    found = str(caught.value)
    assert found.index("model.encoder_dim: 64 there, 128 here") < found.index("(3, 4) there")
    assert "dropout" not in str(caught.value)


def test_photons_alone_go_on_from_photons_and_times():
    there = run_of(encoder=(2, 2), head_us=(5, 2))
    there.params["head_us"]["kernel"][:] = [1.0, 2.0]
    there.record["channels"] = ["npho", "time"]
    new = fresh(encoder=(2, 2), head_us=(5, 1))
    params, _ = hand_over(there, new, RECORD | {"channels": ["npho"]}, CONFIG)
    assert params["head_us"]["kernel"].shape == (5, 1)
    assert (params["head_us"]["kernel"] == 1).all()
    assert params["encoder"]["kernel"].shape == (2, 2)
    with pytest.raises(CheckpointError, match=r"\(5, 2\) there, \(5, 1\) here"):
        hand_over(there, new, RECORD | {"channels": ["time"]}, CONFIG)


def test_a_missing_parameter_of_a_shared_module_is_an_error():
    new = fresh(encoder=(3, 2))
    new["encoder"]["bias"] = jnp.zeros(2)
    with pytest.raises(CheckpointError, match="encoder/bias: absent there"):
        hand_over(run_of(encoder=(3, 2)), new, RECORD, CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder, and the state it ended with."""
    workdir, config = tmp_path_factory.mktemp("runs") / "a", toy.config()
    open_workdir(workdir, config, record={"toy": 1})
    source, valid = toy.sources()
    return workdir, fit(toy.task(), config, source, valid, workdir=workdir).state


def test_a_run_is_read_without_its_config_file(finished):
    workdir, state = finished
    newest = load_run(workdir, step=int(state.step))
    assert newest.is_average
    assert newest.config.task == "toy"
    assert newest.record == {"toy": 1}
    jax.tree.map(np.testing.assert_array_equal, newest.params, jax.device_get(state.ema))
    raw = load_run(workdir, step=int(state.step), ema=False)
    assert not raw.is_average
    jax.tree.map(np.testing.assert_array_equal, raw.params, jax.device_get(state.params))
    assert load_run(workdir).step <= int(state.step)


def test_no_run_and_no_such_step(finished, tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint of step 3"):
        load_run(finished[0], step=3)


def test_a_new_run_starts_from_the_weights_with_a_fresh_optimizer(finished):
    source, _ = toy.sources()
    trainer = Trainer(toy.task(), toy.config(), source)
    saved = load_run(finished[0])
    state, _ = trainer.state_from(saved)
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, saved.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, saved.params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_frozen_parameters_never_move_and_need_no_memory(tmp_path):
    task = dataclasses.replace(toy.task(), frozen=("^kernel",))
    source, valid = toy.sources()
    trainer = Trainer(task, toy.config(), source)
    before = trainer.fresh_state()
    moments = [leaf for leaf in jax.tree.leaves(before.opt_state) if leaf.ndim]
    assert {leaf.shape for leaf in moments} == {(5,)}
    after = fit(task, toy.config(), source, valid, workdir=tmp_path).state
    np.testing.assert_array_equal(after.params["kernel"], before.params["kernel"])
    assert not np.array_equal(after.params["bias"], before.params["bias"])
    assert int(fit(task, toy.config(), source, valid, workdir=tmp_path).state.step) == 20
