"""Muon bundles: the density of a muon given its primary, by a conditional spline flow.

Data: parquet files with the columns `primary` (energy in GeV, zenith in rad, mass in GeV, depth in
m) and `muons` (energy in GeV, r, x, y in m), one row per shower and depth.

    python -m xec_jax.train --config configs/muon_flow.py --config.data.train='/data/train*.parquet'

Without a path the same command trains on the benchmark MB-1, whose density is known, with the
settings under `data.demo.set`. Keys that are not here have the values of `defaults.engine`.

Variants: `default` = `S` (3 transforms, 16 bins, hidden 64, context 32), `M` (4, 32, 256, 64), `L`
(8, 64, 512, 128); `compat`, the predecessor's last settings; `tiny`, seconds; `gh200`, `L` in large
batches with pmap over all GPUs of a node.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xec_jax import defaults

SIZES = {"S": (3, 16, 64, 32, 1e-3), "M": (4, 32, 256, 64, 6e-4), "L": (8, 64, 512, 128, 3e-4)}

SEARCH = {  # python -m xec_jax.sweep
    "default": {
        "optim.lr": ("log", 1e-4, 1e-2, 3),
        "model.flow.transforms": ("int", 2, 8),
        "model.flow.bins": ("choice", 8, 16, 32, 64),
        "model.flow.hidden": ("choice", 64, 128, 256, 512),
    },
}


def get_config(variant: str = "default") -> ConfigDict:
    """Returns the configuration of a variant."""
    c = defaults.engine()
    c.task = "muon_flow"

    c.data = ConfigDict()
    c.data.source = "bundles"
    c.data.train = placeholder(object)  # file, folder, glob or a tuple of these; None: demo
    c.data.valid = placeholder(object)  # None: valid_share of the showers are held out
    c.data.valid_share = 0.1
    c.data.split_seed = 0
    c.data.drop_empty = True  # leave out events without muons
    c.data.batch_size = 4096  # muons per device and micro-batch
    c.data.shuffle = True
    c.data.max_ram_gb = 8.0
    c.data.prefetch_factor = 2
    c.data.timeout_s = 600.0
    c.data.demo = ConfigDict()
    c.data.demo.kind = "muon"
    c.data.demo.events = 24576
    c.data.demo.valid_events = 4096
    c.data.demo.parameters = ConfigDict({"benchmark": "mb1", "strength": 3.0})
    c.data.demo.set = ConfigDict()
    c.data.demo.set.data = ConfigDict({"batch_size": 2048})
    c.data.demo.set.train = ConfigDict({"epochs": 4})
    c.data.demo.set.optim = ConfigDict({"lr": 3e-3, "warmup_epochs": 0.3})

    c.model = ConfigDict()
    c.model.features = "r"  # energy and r; xy: energy, x, y; all: energy, r, x, y
    c.model.stage_a = "physics"  # logarithms, see docs; none: numbers as they are
    c.model.offset_m2 = 0.0  # of r^2; the predecessor's 0.125 for files with r = 0
    c.model.stage_b = ConfigDict()
    c.model.stage_b.muons = "standard"  # or none, yeo_johnson, quantile
    c.model.stage_b.primaries = "standard"
    c.model.stage_b.columns = "all"  # or energy; the others are then `standard`
    c.model.fitted = ConfigDict({"muons": {}, "primaries": {}})  # found before the training
    c.model.context = "primary"  # or none: zeros, to see what the primary is worth
    c.model.twin = True  # a second flow with a constant context, for the same purpose
    c.model.flow = ConfigDict()
    c.model.flow.kind = "autoregressive"  # or coupling, for faster samples
    c.model.flow.bound = 5.0  # the splines act within +- this
    c.model.flow.base = ConfigDict({"name": "normal", "df": 4.0, "components": 8})
    c.model.multiplicity = ConfigDict()
    c.model.multiplicity.head = "nb"  # or mse, the predecessor's point estimate
    c.model.multiplicity.weight = 0.1
    c.model.multiplicity.least = placeholder(int)  # found: 1 if no event is without muons

    c.optim.lr_scheduler = "cosine"
    c.optim.lr_per_step = True
    c.optim.warmup_epochs = 1.0
    c.optim.weight_decay = 1e-5
    c.optim.no_decay = ("bias$",)
    c.optim.grad_clip = 5.0

    c.train.weighting = "muon"  # or event: the muons of an event count together as one
    c.train.chunk_size = 65536  # muons whose inner values are in memory at once

    c.eval.figure_events = 4096  # muons
    c.log.experiment = "muon_flow"
    c.log.show = ("nll", "information", "delta_perm", "residual_r2", "multiplicity_r2")

    size = {"gh200": "L", "compat": "L"}.get(variant, variant)
    flow = c.model.flow
    flow.transforms, flow.bins, flow.hidden, flow.context, c.optim.lr = SIZES.get(size, SIZES["S"])
    if variant == "tiny":
        flow.transforms, flow.bins, flow.hidden, flow.context = 2, 8, 16, 8
        c.data.demo.events, c.data.demo.valid_events = 256, 64
        c.data.demo.set.data.batch_size = 256
        c.data.demo.set.train.epochs = 3
        c.data.demo.set.log = ConfigDict({"every": 4})
        c.eval.report = False
        c.eval.figure_events = 256
    elif variant == "compat":
        c.model.offset_m2, c.model.multiplicity.head = 0.125, "mse"
        c.model.stage_b.muons = c.model.stage_b.primaries = "none"
        c.optim.lr, c.optim.lr_min, c.optim.lr_scheduler = 1e-4, 1e-7, "plateau"
        c.optim.warmup_epochs = c.optim.weight_decay = c.optim.grad_clip = 0.0
        c.train.grad_accum_steps = 4
    elif variant == "gh200":
        c.data.batch_size = 262144
        c.train.parallel = "pmap"
    elif variant not in ("default", *SIZES):
        known = ", ".join(("default", *SIZES, "compat", "tiny", "gh200"))
        raise ValueError(f"variant {variant!r}; there are {known}")
    return c
