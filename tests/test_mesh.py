"""Meshes, and the state divided over them: the same numbers with less memory on each device."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import toy
from test_train_step import run, toy_batch, worst

from xec_jax.errors import ConfigError
from xec_jax.train.mesh import (
    batch_putter,
    check_mode,
    for_steps,
    local_copy,
    make_mesh,
    replicated,
    state_shardings,
)
from xec_jax.train.step import init_state, make_train_step

TX = optax.adam(1e-2)


def wide_params():
    """Parameters of which one can be cut and the other cannot (3 x 5 does not divide)."""
    params = toy.task().init(jax.random.PRNGKey(0), None)
    return params | {"table": jax.random.normal(jax.random.PRNGKey(1), (8, 64))}


def wide_loss(params, batch, key):
    terms, metrics = toy.task().loss(params, batch, key)
    y = batch["x"] @ params["table"][:3]
    weight = batch["weight"].sum()
    total = (batch["weight"] * ((y - 1) ** 2).mean(1)).sum()
    return terms | {"table": type(terms["all"])(total, weight)}, metrics


def divided(shape, steps=5, accum=1, **options):
    """State after some steps with a divided state, on the devices."""
    mesh = make_mesh(*shape)
    state = init_state(jax.tree.map(np.copy, wide_params()), TX, seed=1, with_ema=True)
    shardings = state_shardings(mesh, state, smallest=64)
    state = jax.device_put(state, shardings)
    options = {"mesh": mesh, "accum_steps": accum, "ema_decay": 0.9, **options}
    step = make_train_step(wide_loss, TX, state_shardings=shardings, **options)
    put = batch_putter(mesh, "jit")
    for _ in range(steps):
        state, _ = step(state, put(toy_batch()))
    return state, mesh


@pytest.fixture(scope="module")
def one_device():
    arguments = (toy.task(), toy_batch(), wide_params(), TX, (1, "jit", 1), 5)
    return run(*arguments, loss_fn=wide_loss, ema_decay=0.9)[0]


@pytest.mark.parametrize(("shape", "accum"), [((2, 2), 1), ((1, 4), 1), ((2, 2), 2), ((4, 1), 2)])
def test_divided_state_gives_the_same_numbers(one_device, shape, accum):
    state, mesh = divided(shape, accum=accum)
    for name in ("params", "ema", "opt_state"):
        assert worst(getattr(one_device, name), jax.device_get(getattr(state, name))) < 1e-6
    copy = local_copy(state.ema, mesh)
    assert {leaf.devices().pop() for leaf in jax.tree.leaves(copy)} == {jax.local_devices()[0]}
    assert worst(one_device.ema, copy) < 1e-6


def test_each_device_holds_its_part_only():
    state, _ = divided((1, 4))
    for tree in (state.params, state.ema, state.opt_state[0].mu, state.opt_state[0].nu):
        table, kernel = tree["table"], tree["kernel"]
        assert {shard.data.nbytes for shard in table.addressable_shards} == {table.nbytes // 4}
        assert {shard.data.shape for shard in table.addressable_shards} == {(8, 16)}
        assert {shard.data.shape for shard in kernel.addressable_shards} == {kernel.shape}


def test_only_what_is_large_and_divides_evenly_is_cut():
    shape = {"a": (6, 8), "b": (3, 5), "c": (), "d": (2,), "e": (64, 9)}
    shapes = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shape.items()}
    found = state_shardings(make_mesh(1, 4), shapes, smallest=32)
    assert {k: tuple(s.spec) for k, s in found.items()} == {
        "a": (None, "model"), "b": (), "c": (), "d": (), "e": ("model",)
    }  # fmt: skip
    whole = state_shardings(make_mesh(4, 1), shapes, smallest=0)
    assert all(sharding.is_fully_replicated for sharding in whole.values())


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_old_state_makes_room_for_the_new(mode):
    mesh = make_mesh(4)
    old = init_state(jax.tree.map(np.copy, wide_params()), TX, seed=1, with_ema=True)
    old = for_steps(jax.device_put(old, replicated(mesh)), mesh, mode)
    copy = local_copy(old.params, mesh)
    step = make_train_step(wide_loss, TX, mesh=mesh, mode=mode, ema_decay=0.9)
    step(old, batch_putter(mesh, mode)(toy_batch()))
    assert old.params["table"].is_deleted()
    assert old.opt_state[0].nu["table"].is_deleted()
    assert np.isfinite(copy["table"]).all(), "a copy of its own"


@pytest.mark.parametrize(
    ("shape", "key"),
    [((5, 1), "mesh.data"), ((-1, 1), "mesh.data"), ((0, 3), "mesh.model"), ((0, 0), "mesh.model")],
)
def test_impossible_meshes_are_refused(shape, key):
    with pytest.raises(ConfigError, match=f"train.{key} is"):
        make_mesh(*shape)


@pytest.mark.parametrize(("owners", "data"), [([0, 0, 1, 1], 2), ([0, 0, 0, 1], 0), ([0] * 4, 0)])
def test_processes_take_equal_shares_or_none(monkeypatch, owners, data):
    devices = [SimpleNamespace(process_index=i, platform="cpu") for i in owners]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"train.mesh takes \d of 4 devices"):
        make_mesh(data)


def test_modes():
    assert check_mode("pmap", 1) == "pmap"
    with pytest.raises(ConfigError, match=r"train.parallel is 'xmap'"):
        check_mode("xmap", 1)
    with pytest.raises(ConfigError, match=r"train.mesh.model is 2 with train.parallel=pmap"):
        check_mode("pmap", 2)


EIGHT = """
import jax, test_mesh
from test_train_step import run, toy_batch, worst
for shape in ((4, 2), (2, 4)):
    state, _ = test_mesh.divided(shape)
    arguments = (None, toy_batch(), test_mesh.wide_params(), test_mesh.TX)
    for cut in ((1, "jit", 1), (8, "jit", 2), (8, "pmap", 1)):
        other, _ = run(*arguments, cut, 5, loss_fn=test_mesh.wide_loss, ema_decay=0.9)
        assert worst(jax.device_get(state.params), other.params) < 1e-6, (shape, cut)
print("equal on", jax.device_count())
"""


def test_eight_devices():
    here = Path(__file__).parent
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=8")
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", EIGHT],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout == "equal on 8\n", done.stderr
