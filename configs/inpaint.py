"""Inpainting of dead channels: an encoder and heads that predict hidden sensors.

    python -m xec_jax.train --config configs/inpaint.py --config.train.init_from=runs/mae-fine \
        --config.data.train='/data/train*.root' --config.data.valid='/data/valid*.root'

starts from the encoder of a pretraining without pooling (configs/mae.py pools by default),

    python -m xec_jax.train --config configs/mae.py --workdir=runs/mae-fine \
        "--config.model.outer_fine_pool=(1,1)" ...

and trains all of it; with `--config.model.freeze_encoder=true` only the heads. Real data need no
truth; files without times need
`--config.data.time_branch=None "--config.model.predict_channels=('npho',)"`.

Without a path the same command trains on a small simulated sample, with the settings under
`data.demo.set` in place of those below. Keys that are not set here have the values of
`xec_jax/defaults.py`.

Variants: `default`; `tiny`, a small network that shows that everything works; `gh200`, large
batches in bfloat16 with pmap over all GPUs of a node.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xec_jax import defaults

SEARCH = {  # python -m xec_jax.sweep
    "default": {
        "optim.lr": ("log", 1e-5, 3e-3, 4),
        "model.head_dim": ("choice", 32, 64, 128),
        "model.dropout": ("uniform", 0.0, 0.3, 3),
        "optim.weight_decay": ("choice", 0.0, 1e-5, 1e-4, 1e-3),
    },
}


def get_config(variant: str = "default") -> ConfigDict:
    """Returns the configuration of a variant."""
    c = defaults.calorimeter()
    c.task = "inpaint"
    c.data.batch_size = 128  # events per device and micro-batch

    c.model.outer_fine_pool = (1, 1)  # pooled sensors share pixels, and then predictions
    c.model.head_type = "per_face"  # or masked_attention, cross_attention, global_only
    c.model.head_dim = 64  # channels inside the heads of grids
    c.model.hex_head_dim = 96
    c.model.cross_attn_k = 16  # nearest sensors to attend to
    c.model.cross_attn_hidden = 64
    c.model.cross_attn_latent = 128
    c.model.cross_attn_pos = 96  # 6 x wavelengths of the position code
    c.model.predict_channels = ("npho", "time")
    c.model.mask_ratio = placeholder(object)  # share of the maskable sensors of each event,
    c.model.mask_ratio = 0.05  # or {"inner": 0.01, "us": 0.05, ...}, 0 on faces left out
    c.model.mask_npho_flat = False  # hide evenly in the logarithm of the photon count
    c.model.maskable = "npho"  # sensors with this channel valid may be hidden; predecessor: time
    c.model.time_mask_ratio_scale = 1.0  # above 1 hides bright sensors more often
    c.model.fill_npho = placeholder(float)  # input of hidden counts; None: sentinel_npho
    c.model.freeze_encoder = False  # True needs train.init_from

    c.optim.lr = 1e-4
    c.optim.lr_scheduler = "cosine"
    c.optim.warmup_epochs = 3.0

    c.train.epochs = 50
    c.train.grad_accum_steps = 4  # 512 events per device and step
    c.train.loss_beta = 0.1
    c.train.loss_reduction = "per_face"  # or flat: the inner face outweighs the others
    c.train.npho_weight = 1.0
    c.train.time_weight = 1.0
    c.train.use_npho_time_weight = True  # weight times by sqrt(photons)
    c.train.npho_loss_weight = ConfigDict()
    c.train.npho_loss_weight.enabled = False  # weight photons by (photons + 1)^alpha
    c.train.npho_loss_weight.alpha = 0.5

    c.log.experiment = "inpainting"
    c.log.show = ("r2_npho", "mae_photons", "mae_photons_neighbors", "rel_mae")

    if variant == "tiny":
        defaults.shrink(c)
        c.model.outer_fine_pool = (3, 3)
        c.model.head_dim = 16
        c.model.hex_head_dim = 16
        c.data.demo.events = 32
        c.data.demo.valid_events = 16
    elif variant == "gh200":
        defaults.enlarge(c)
    elif variant != "default":
        raise ValueError(f"variant {variant!r}; there are default, tiny, gh200")
    return c
