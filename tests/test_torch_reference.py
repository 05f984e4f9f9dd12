"""A second implementation, in PyTorch and written from the paper: same names, numbers, slopes."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import EXTRA, filled, load

from xec_jax import config as configs
from xec_jax.geometry import make_detector
from xec_jax.losses import make_loss, ratio
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.regressor import Regressor
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.tasks.calorimeter import encode, transform_of
from xec_jax.torch_weights import fill

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from torch_reference import mae as torch_mae  # noqa: E402
from torch_reference import regressor as torch_regressor  # noqa: E402
from torch_reference.encoder import XECEncoder  # noqa: E402

FORMS = {
    "pool33": ("finegrid", (3, 3)),
    "nopool": ("finegrid", None),
    "split": ("split", None),
}
WIDTHS = {"dim": 128, "n_heads": 4}
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
"""Compiled in a third of the time, and run a few times only."""


def draw(net, strength="B"):
    """Gives every parameter its pseudo-random values, the same at every width."""
    norms = {f"{n}.weight" for n, m in net.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    kinds = {n: "norm_weight" if n in norms else "param" for n, _ in net.named_parameters()}
    shapes = {n: tuple(p.shape) for n, p in net.named_parameters()}
    values = {n: torch.tensor(filled(n, shapes[n], kinds[n], strength)) for n in kinds}
    net.load_state_dict(values, strict=False)
    return net.eval()


def tensors(net, slopes=False):
    """Values or gradients of the parameters by name."""
    named = [(n, p.grad if slopes else p) for n, p in net.named_parameters()]
    return {n: t.detach().numpy() for n, t in named if t is not None}


def assert_slopes_agree(ours, theirs, tolerance=1e-4):
    """Compares relative to the largest slope of each array."""
    for path, slope in jax.tree_util.tree_leaves_with_path(theirs):
        found = ours
        for key in path:
            found = found[key.key]
        scale = np.abs(slope).max()
        assert scale > 0, path
        assert np.abs(found - slope).max() < tolerance * scale, path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["regressor", "mae"])
def test_names_and_shapes_are_those_of_the_predecessor(kind, form):
    path = EXTRA / "ref_params.json"
    if not path.exists() or (kind, form) == ("mae", "split"):
        pytest.skip("no list")
    listed = json.loads(path.read_text())[f"ref_{kind}_{form}"]["state"]
    with torch.device("meta"):
        encoder = XECEncoder("documented", *FORMS[form])
        make = {"regressor": torch_regressor.XECRegressor, "mae": torch_mae.XECMAE}[kind]
        state = make(encoder).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert found == {name: tuple(shape) for name, shape, *_ in listed}


def test_full_size_reconstructions_of_the_predecessor():
    net = draw(torch_mae.XECMAE(XECEncoder("documented", *FORMS["pool33"])))
    data, expected = load("ref_masking.npz"), load("refB_mae_pool33.npz")
    shown = torch.tensor(data["xmasked65"])
    unseen = torch.tensor(data["mask65"].astype(bool) | (data["x"][..., 1] == -1))
    with torch.no_grad():
        found = net(shown, unseen)
    for face, values in found.items():
        np.testing.assert_allclose(values, expected[f"recon_{face}"], atol=5e-5, err_msg=face)


def test_masks_of_the_predecessor():
    data = load("ref_masking.npz")
    x, noise = torch.tensor(data["x"]), torch.tensor(data["noise"])
    invalid = x[..., 1] == -1
    bright = x[..., 0] > float(data["threshold_norm"])
    for name, favored in (("mask65", ()), ("mask65_strat", (bright, 2.0))):
        hidden = torch_mae.choose_hidden(invalid, noise, 0.65, *favored)
        np.testing.assert_array_equal(hidden, data[name].astype(bool))
    hidden = torch.tensor(data["mask65"]).bool()
    filled = torch_mae.fill_hidden(x, hidden, (-1.0, -1.0))
    np.testing.assert_array_equal(filled, data["xmasked65"])


def events(n):
    """Raw events with dead channels and invalid times."""
    rng = np.random.default_rng(0)
    batch = example_batch({name: ((4760,), np.float32) for name in ("npho", "time")}, n)
    batch["npho"] = np.exp(rng.normal(4, 2, (n, 4760))).astype(np.float32)
    batch["time"] = rng.normal(2e-8, 1e-8, (n, 4760)).astype(np.float32)
    batch["npho"][rng.uniform(size=(n, 4760)) < 0.05] = 1e10
    batch["time"][rng.uniform(size=(n, 4760)) < 0.2] = 1e10
    return batch


OVERRIDES = {
    "predecessor": [
        "model.geometry=documented",
        "model.outer_mask=coarse",
        "model.maskable=time",
        "model.outer_fine_pool=(1,1)",
        "data.normalization.sentinel_npho=-1",
    ],
    "ours": ["train.loss_beta=0.1", "train.time_weight=0.5"],
}


@pytest.mark.parametrize("rules", OVERRIDES)
def test_autoencoder_loss_and_all_its_slopes(rules):
    """The whole objective, from raw events to the gradient of every parameter."""
    widths = ["model.encoder_dim=128", "model.num_heads=4", "model.decoder_dim=16"]
    texts = [f"--config.{text}" for text in ("data.train=x", *widths, *OVERRIDES[rules])]
    config = configs.load("configs/mae.py", texts)
    task, batch, key = make_task(config), events(2), jax.random.PRNGKey(0)
    model, train = config.model, config.train
    place = (model.geometry, model.outer_mode, model.outer_fine_pool)
    net = XECEncoder(*place, **WIDTHS, outer_mask=model.outer_mask)
    net = draw(torch_mae.XECMAE(net, model.decoder_dim))
    template = jax.eval_shape(task.init, key, batch)
    params = fill("mae", tensors(net), template)

    def loss(params):
        terms, _ = task.evaluate(params, batch, key)
        return sum(ratio(term) for term in terms.values())

    value, slopes = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)
    # Asked for its mask alone, with the key it hides with, the compiler drops the network.
    hidden = np.array(jax.jit(lambda p, b: task.predict(p, b)["hidden"])(params, batch))

    x, valid = (np.array(a) for a in encode(transform_of(config), batch))
    photons = np.where(valid[..., 0], batch["npho"], 0)
    unseen = hidden | ~valid[..., 1 if model.maskable == "time" else 0]
    sentinels = tuple(config.data.normalization[f"sentinel_{c}"] for c in ("npho", "time"))
    net = net.double()
    x, hidden, photons = torch.tensor(x).double(), torch.tensor(hidden), torch.tensor(photons)
    faces = net(torch_mae.fill_hidden(x, hidden, sentinels), torch.tensor(unseen))
    theirs = torch_mae.mae_loss(
        *(net, faces, x, hidden, photons.double()),
        torch.tensor(valid[..., 1]) & (photons > train.npho_threshold),
        loss=(train.loss_fn, train.loss_beta),
        weights=(train.npho_weight, train.time_weight),
        threshold=train.npho_threshold,
    )
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
    assert_slopes_agree(slopes, fill("mae", tensors(net, slopes=True), template))


def test_regressor_outputs_and_slopes_of_parameters_and_inputs():
    losses = {
        "angle": ("smooth_l1", 1.0, 1.0),
        "energy": ("gaussian_nll", 0.5, 2.0),
        "timing": ("l1", 1.0, 0.5),
        "uvwFI": ("mse", 1.0, 0.1),
        "angleVec": ("relative_smooth_l1", 0.1, 1.0),
    }
    net = XECEncoder("physical", "split", **WIDTHS)
    net = draw(torch_regressor.XECRegressor(net, losses, 16, doubled=["energy"]))
    outputs = {task: head[-1].out_features for task, head in net.heads.items()}
    rng = np.random.default_rng(1)
    x = rng.normal(0.5, 0.5, (2, 4760, 2)).astype(np.float32)
    x[rng.uniform(size=x.shape[:2]) < 0.1] = -1
    targets = {
        task: rng.normal(size=(2, torch_regressor.OUTPUTS[task])).astype(np.float32)
        for task in losses
    }
    weight = np.array([0.5, 2.0], np.float32)

    faces = make_detector("physical", "split").faces
    ours = Regressor(XecEncoder(faces, **WIDTHS), outputs, hidden=16)
    template = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
    params = fill("regressor", tensors(net), template)

    def total(params, x):
        out, parts = ours.apply({"params": params}, x), []
        for task, (name, beta, task_weight) in losses.items():
            per_event = make_loss(name, beta=beta)(out[task], targets[task]).mean(-1)
            parts.append(task_weight * (per_event * weight).mean())
        return sum(parts), out

    slopes_of = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    slopes_of = jax.jit(slopes_of, compiler_options=QUICK)
    (value, out), (slopes, slope_x) = slopes_of(params, jnp.asarray(x))

    net, inputs = net.double(), torch.tensor(x).double().requires_grad_()
    found = net(inputs)
    doubles = {task: torch.tensor(target).double() for task, target in targets.items()}
    theirs = torch_regressor.task_loss(found, doubles, losses, torch.tensor(weight))
    theirs.backward()
    for task in losses:
        np.testing.assert_allclose(out[task], found[task].detach(), atol=2e-5, err_msg=task)
    assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
    assert_slopes_agree(slopes, fill("regressor", tensors(net, slopes=True), template))
    scale = float(inputs.grad.abs().max())
    np.testing.assert_allclose(slope_x, inputs.grad, atol=1e-4 * scale)
