"""Regression of direction, energy, time and position of a photon (32,302,599 parameters).

Data: ROOT files with the branches `npho` (photons) and `relative_time` (s), [4760] each, and the
truth: `emiAng` (degrees), `energyTruth` (GeV), `timeTruth` (ns) with `time_min_used` (s), and
`uvwTruth` (cm).

    python -m xec_jax.train --config configs/regress.py --config.data.train='/data/train*.root' \
        --config.data.valid='/data/valid*.root' --config.train.init_from=runs/mae-default

`train.init_from` starts from the encoder of a pretraining; leave it out to start from scratch.
A quantity that the files lack is switched off with `--config.train.tasks.energy.enabled=false`.

Without a path the same command trains on a small simulated sample, with the settings under
`data.demo.set` in place of those below. Keys that are not here have the values of
`xec_jax/defaults.py`.

Variants: `default`; `tiny`, a small network that shows that everything works; `gh200`, large
batches in bfloat16 with pmap over all GPUs of a node.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xec_jax import defaults
from xec_jax.targets import QUANTITIES

LOSSES = {"energy": "l1", "timing": "l1", "uvwFI": "mse", "angleVec": "angular"}
BINS = {"angle": (20, 20), "energy": 30, "timing": 30, "uvwFI": (10, 10)}

SEARCH = {  # python -m xec_jax.sweep
    "default": {
        "optim.lr": ("log", 1e-5, 3e-3, 4),
        "optim.weight_decay": ("choice", 0.0, 1e-5, 1e-4, 1e-3),
        "model.head_dropout": ("uniform", 0.0, 0.4, 3),
        "model.hidden_dim": ("choice", 128, 256, 512),
    },
    "weights": {  # they scale the loss: give --metric a resolution to compare
        "train.tasks.energy.weight": ("log", 0.1, 10.0, 3),
        "train.tasks.timing.weight": ("log", 0.1, 10.0, 3),
        "train.tasks.uvwFI.weight": ("log", 0.1, 10.0, 3),
    },
}


def get_config(variant: str = "default") -> ConfigDict:
    """Returns the configuration of a variant."""
    c = defaults.calorimeter()
    c.task = "regress"
    c.data.batch_size = 128
    c.train.grad_accum_steps = 2  # 256 events per device and step

    for key in ("loss_fn", "loss_beta", "npho_threshold"):
        del c.train[key]  # of reconstructions; here every quantity has a loss of its own
    c.train.tasks = ConfigDict()
    for name, quantity in QUANTITIES.items():
        task = c.train.tasks[name] = ConfigDict()
        task.enabled = name in ("angle", "energy", "timing", "uvwFI")
        task.branch = placeholder(str)
        if quantity.branch is not None:
            task.branch = quantity.branch
        task.loss_fn = LOSSES.get(name, "smooth_l1")
        task.loss_beta = placeholder(float)  # None: the loss's own, 1 for smooth_l1
        task.weight = 1.0
        task.quantiles = (0.16, 0.5, 0.84)  # for loss_fn = quantile
        task.log_transform = False  # learn the logarithm; energy alone is always positive
    c.train.tasks.n_gamma.loss_fn = "cross_entropy"
    c.train.tasks.timing.reference = "auto"  # or none, time_min_used: zero of the input times
    c.train.loss_units = "std"  # of the training truth; or physical: deg, GeV, ns, cm
    c.train.loss_balance = "manual"  # or auto: a learned factor per task instead of `weight`

    c.model.hidden_dim = 256  # of the heads
    c.model.head_dropout = 0.2
    c.model.heads = "active"  # or all six, for exchange of weights with the predecessor
    c.model.output_affine = "auto"  # heads start at the training mean; none: at 0
    c.model.affine = ConfigDict()  # found before the training, unless set here
    for name in QUANTITIES:
        if name != "n_gamma":
            c.model.affine[name] = ConfigDict()
            c.model.affine[name].mean = placeholder(tuple)
            c.model.affine[name].std = placeholder(tuple)

    c.data.allow_relative_energy = False  # energy from npho_branch = relative_npho
    c.data.allow_bad_truth = False  # more than 1 % of the events without truth
    c.data.reweight = ConfigDict({"max_weight": 10.0})
    for name, nbins in BINS.items():
        c.data.reweight[name] = ConfigDict({"enabled": False, "nbins": nbins})
        c.data.reweight[name].branch = c.train.tasks[name].get_ref("branch")
    c.data.reweight.timing.reference = placeholder(str)  # found before the training

    c.optim.lr = 3e-4
    c.optim.lr_scheduler = "cosine"
    c.optim.lr_min = 1e-6
    c.optim.warmup_epochs = 2.0
    c.optim.weight_decay = 1e-4
    c.optim.no_decay = ("bias$", "norm", "^log_var_")
    c.optim.ema_decay = 0.999

    c.eval.figure_events = 256
    c.log.experiment = "gamma_regression"
    c.log.show = (
        "angle_resolution_68pct",
        "energy_rel_res_68pct",
        "timing_res_68pct_ps",
        "uvw_dist_68pct",
    )
    # The average over a thousand steps would remember little but the start of a short run.
    c.data.demo.set.optim.ema_decay = 0.98

    if variant == "tiny":
        defaults.shrink(c)
        c.eval.figure_events = 32
    elif variant == "gh200":
        defaults.enlarge(c)
        c.data.batch_size = 1024
    elif variant != "default":
        raise ValueError(f"variant {variant!r}; there are default, tiny, gh200")
    return c
