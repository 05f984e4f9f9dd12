"""The optimizer against torch and by hand, and rules by patterns on paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from ml_collections import ConfigDict

from xec_jax import config as configs
from xec_jax.errors import ConfigError
from xec_jax.train.optim import describe_groups, hold, make_optimizer, unmatched
from xec_jax.train.schedules import Schedule, make_schedule


def optim_config(**keys):
    optim = toy.config().optim
    optim.update({"lr": 0.1, "lr_scheduler": None, "grad_clip": 0.0, "no_decay": ()} | keys)
    return optim


def optimizer(optim, frozen=()):
    return make_optimizer(optim, make_schedule(optim, steps_per_epoch=5, epochs=4), frozen)


def network():
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    encoder = {"stem": {"kernel": draw(3, 4), "bias": draw(4)}, "norm": {"scale": draw(4)}}
    return {"encoder": encoder, "head_energy": {"kernel": draw(4, 2), "bias": draw(2)}}


def paths_and_leaves(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def gradients(params, step):
    """Those of a quadratic whose minimum moves: large at first, so that AMSGrad remembers."""
    scale = 100.0 if step == 3 else 1.0
    return jax.tree.map(lambda p: scale * (p - 0.1 * step), params)


def trained(optim, params, steps=20):
    tx = optimizer(optim)
    update = jax.jit(tx.update)
    state = tx.init(params)
    for step in range(steps):
        updates, state = update(gradients(params, step), state, params, step=step)
        params = optax.apply_updates(params, updates)
    return paths_and_leaves(params)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("lr_scale", [(), (("^encoder/", 0.1), ("bias$", 3.0))])
def test_twenty_steps_agree_with_groups_in_torch(amsgrad, lr_scale):
    """Decay goes with the rate of the group, as in torch; of several patterns the first counts."""
    torch = pytest.importorskip("torch")
    lr, decay, params = 3e-3, 0.3, network()
    factors = {p: 1.0 for p in paths_and_leaves(params)}
    if lr_scale:
        factors |= {p: 0.1 for p in factors if p.startswith("encoder/")}
        factors |= {"head_energy/bias": 3.0}
    tensors = {
        path: torch.nn.Parameter(torch.tensor(np.asarray(leaf, np.float64)))
        for path, leaf in paths_and_leaves(params).items()
    }
    groups = [
        {
            "params": [tensor],
            "lr": lr * factors[path],
            "weight_decay": 0.0 if path.endswith("scale") else decay,
        }
        for path, tensor in tensors.items()
    ]
    there = torch.optim.AdamW(groups, amsgrad=amsgrad)
    for step in range(20):
        for tensor in tensors.values():
            scale = 100.0 if step == 3 else 1.0
            tensor.grad = scale * (tensor.detach() - 0.1 * step)
        there.step()
    optim = optim_config(lr=lr, weight_decay=decay, amsgrad=amsgrad, lr_scale=lr_scale)
    optim.no_decay = ("scale$",)
    here = trained(optim, params)
    for path, tensor in tensors.items():
        expected = tensor.detach().numpy()
        np.testing.assert_allclose(here[path], expected, atol=1e-6, err_msg=path)


def test_amsgrad_remembers_the_largest_gradient():
    params = network()
    plain, largest = (trained(optim_config(amsgrad=on), params) for on in (False, True))
    assert not np.allclose(plain["head_energy/bias"], largest["head_energy/bias"], atol=1e-4)


def test_rate_follows_the_step_not_the_updates():
    tx = make_optimizer(toy.config().optim, Schedule(lambda step: 0.1 * step))
    params = {"kernel": jnp.array([0.0]), "bias": jnp.array([0.0])}
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params, step=7)
    np.testing.assert_allclose(updates["kernel"], -0.7, rtol=1e-5)


def test_rate_follows_the_plateau():
    optim = optim_config(lr_scheduler="plateau", warmup_epochs=0, lr_patience=0, weight_decay=0.0)
    schedule = make_schedule(optim, steps_per_epoch=5, epochs=4)
    tx = make_optimizer(optim, schedule, ("bias",))
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(1)}
    plateau = schedule.init()
    for loss in (1.0, 2.0):
        plateau = schedule.after_validation(plateau, loss)
    updates, _ = tx.update(params, tx.init(params), params, step=3, plateau=plateau)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-4)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_patterns_read_paths():
    params = {"encoder": {"norm": {"scale": 1, "bias": 2}, "dense": {"kernel": 3}}}
    assert unmatched(params, ("norm/", r"bias$")) == {
        "encoder": {"norm": {"scale": False, "bias": False}, "dense": {"kernel": True}}
    }


def test_adamw_first_step_by_hand():
    """Clip to norm 1, then lr (g/|g| + decay p): after one step Adam's ratio is the sign."""
    optim = optim_config(grad_clip=1.0, no_decay=("bias",))
    params = {"kernel": jnp.array([2.0, -3.0]), "bias": jnp.array([1.0])}
    gradient = {"kernel": jnp.array([30.0, -40.0]), "bias": jnp.array([0.0])}
    tx = optimizer(optim)
    updates, _ = tx.update(gradient, tx.init(params), params, step=0)
    new = optax.apply_updates(params, updates)
    expected = {
        "kernel": [2 - 0.1 * (1 + 0.01 * 2), -3 - 0.1 * (-1 + 0.01 * -3)],
        "bias": [1.0],
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, expected)


def test_clipping_is_global_and_leaves_frozen_parts_out():
    tx = optimizer(optim_config(grad_clip=1.0, frozen=("^huge$",)))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1), "huge": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "huge": jnp.array([1e9])}
    _, state = tx.update(gradient, tx.init(params), params, step=0)
    first_moments = [leaf.item() for leaf in jax.tree.leaves(state) if leaf.ndim][:2]
    assert first_moments == pytest.approx([0.06, 0.08])


@pytest.mark.parametrize("amsgrad", [False, True])
def test_frozen_parts_stay_and_take_no_memory(amsgrad):
    optim = optim_config(amsgrad=amsgrad, frozen=("^encoder/stem/",))
    params = network()
    tx = optimizer(optim, frozen=("^head_energy/kernel",))
    state = tx.init(params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert kept == (4 + 2) * (3 if amsgrad else 2), "moments of norm/scale and the head's bias"
    updates, _ = tx.update(params, state, params, step=0)
    moved = {path for path, leaf in paths_and_leaves(updates).items() if np.any(leaf)}
    assert moved == {"encoder/norm/scale", "head_energy/bias"}


def test_gradients_of_held_parts_are_zero():
    def loss(params, batch, key):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(params)) + batch

    assert hold(loss, ()) is loss
    gradient = jax.grad(hold(loss, ("^encoder/",)))(network(), 1.0, None)
    for path, leaf in paths_and_leaves(gradient).items():
        assert np.any(leaf) != path.startswith("encoder/"), path


def test_rules_come_through_json_and_the_command_line(tmp_path):
    config = toy.config()
    config.optim.update({"lr_scale": (("^encoder/", 0.1),), "frozen": ("head_energy/bias",)})
    optim = configs.from_json(configs.to_json(config)).optim
    assert optim.lr_scale == (("^encoder/", 0.1),)
    optimizer(optim).init(network())
    path = tmp_path / "c.py"
    path.write_text("from toy import config\ndef get_config(): return config()\n")
    override = "--config.optim.lr_scale=(('^encoder/', 0.5), ('bias', 2))"
    optim = configs.load(str(path), [override]).optim
    assert optim.lr_scale == (("^encoder/", 0.5), ("bias", 2))
    optimizer(optim).init(network())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"no_decay": ("[",)}, r"optim.no_decay holds '\['(.|\n)*regular expressions"),
        ({"frozen": ("(",)}, r"optim.frozen holds '\('"),
        ({"frozen": (1,)}, "optim.frozen holds 1"),
        ({"lr_scale": (("*", 1.0),)}, r"optim.lr_scale holds '\*'"),
        ({"lr_scale": ("^encoder/", 0.1)}, r"holds '\^encoder/'(.|\n)*\('\^encoder/', 0.1\),"),
        ({"lr_scale": (("a", 0.1, 2),)}, "pairs"),
        ({"lr_scale": (("a", 0.0),)}, "belongs into optim.frozen"),
        ({"lr_scale": (("a", True),)}, "pairs"),
        ({"lr_scale": (("a", float("nan")),)}, "pairs"),
    ],
)
def test_bad_rules(keys, message):
    with pytest.raises(ConfigError, match=message):
        optimizer(optim_config(**keys))


@pytest.mark.parametrize("key", ["no_decay", "frozen"])
def test_a_text_is_no_list_of_patterns(key):
    optim = ConfigDict(optim_config().to_dict() | {key: "bias"})
    with pytest.raises(ConfigError, match=rf"optim.{key} is the text(.|\n)*\('bias',\)"):
        optimizer(optim)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"frozen": ("^encodr/",)}, r"frozen: no parameter has '\^encodr/'(.|\n)*encoder"),
        ({"lr_scale": (("^head_enrgy", 0.1),)}, r"lr_scale: no parameter(.|\n)*head_energy"),
        ({"lr_scale": (("^enc", 0.1), ("stem", 0.2))}, "'stem' belongs to a pair before it"),
        ({"frozen": ("encoder", "head")}, "all parameters are frozen by 'encoder', 'head'"),
    ],
)
def test_rules_that_decide_for_nothing(keys, message):
    """Also where shapes alone are asked for, as at the start of a run."""
    tx = optimizer(optim_config(**keys))
    for init in (tx.init, functools.partial(jax.eval_shape, tx.init), jax.jit(tx.init)):
        with pytest.raises(ConfigError, match=message):
            init(network())


def test_no_decay_may_find_nothing():
    """Its patterns are habits of a config, for parts that a network may lack."""
    optimizer(optim_config(no_decay=("^channel_log_vars$",))).init(network())


def test_groups_in_words():
    optim = optim_config(lr_scale=(("^encoder/", 0.1),), no_decay=("bias$",))
    assert describe_groups(network(), optim_config()) == []
    lines = describe_groups(network(), optim, frozen=("norm",))
    assert [" ".join(line.split()) for line in lines] == [
        "norm 4 parameters, frozen",
        "^encoder/ 16 parameters, rate x 0.1, 12 of them decay",
        "all others 10 parameters, rate x 1, 8 of them decay",
    ]
