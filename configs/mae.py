"""Masked-autoencoder pretraining of the calorimeter's encoder (45,031,436 parameters).

Data: ROOT files with the branches `npho` (photons) and `relative_time` (s), [4760] each.

    python -m xec_jax.train --config configs/mae.py --config.data.train='/data/train*.root' \
        --config.data.valid='/data/valid*.root'

Without a path the same command trains on a small simulated sample, with the settings under
`data.demo.set` in place of those below, so that two CPU cores finish in minutes.

Keys that are not set here have the values of `xec_jax/defaults.py`.

Variants: `default`; `tiny`, a small network that shows that everything works and, in its 24 steps,
learns next to nothing;
`gh200`, large batches in bfloat16 with pmap over all GPUs of a node.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xec_jax import defaults

SEARCH = {  # python -m xec_jax.sweep
    "default": {
        "optim.lr": ("log", 1e-5, 1e-2, 4),
        "optim.weight_decay": ("choice", 0.0, 1e-5, 5e-5, 1e-3),
        "model.dropout": ("uniform", 0.0, 0.3, 3),
        "model.num_fusion_layers": ("int", 1, 4),
    },
    "size": {
        "optim.lr": ("log", 1e-5, 1e-2, 4),
        "model.encoder_dim": ("choice", 256, 512, 1024),
        "model.num_fusion_layers": ("int", 1, 4),
        "model.decoder_dim": ("choice", 32, 64, 128, 256),
    },
}


def get_config(variant: str = "default") -> ConfigDict:
    """Returns the configuration of a variant."""
    c = defaults.calorimeter()
    c.task = "mae"
    c.data.batch_size = 128  # events per device and micro-batch; about 70 MB each in float32
    c.train.grad_accum_steps = 8  # 1024 events per device and step

    c.model.decoder_dim = 128
    c.model.hex_decoder_dim = placeholder(int)  # None: decoder_dim
    c.model.predict_channels = ("npho", "time")
    c.model.mask_ratio = 0.65  # share of the maskable sensors of each event
    c.model.maskable = "npho"  # sensors with this channel valid may be hidden; predecessor: time
    c.model.time_mask_ratio_scale = 1.0  # above 1 hides bright sensors more often
    c.model.fill_npho = placeholder(float)  # input of hidden counts; None: sentinel_npho

    c.optim.lr = 2.5e-4
    c.optim.lr_min = 1e-8
    c.optim.warmup_epochs = 3.0
    c.optim.weight_decay = 5e-5
    c.optim.no_decay = ("^channel_log_vars$",)

    c.train.npho_weight = 1.0
    c.train.time_weight = 1.0
    c.train.auto_channel_weight = False  # learn the balance of the channels
    c.train.use_npho_time_weight = True  # weight times by sqrt(photons)
    c.train.npho_loss_weight = ConfigDict()
    c.train.npho_loss_weight.enabled = False  # weight photons by (photons + 1)^alpha
    c.train.npho_loss_weight.alpha = 0.5

    c.log.experiment = "mae_pretraining"
    c.log.show = ("r2_npho", "r2_time", "mae_photons", "mae_time_ns")

    if variant == "tiny":
        defaults.shrink(c)
        c.model.decoder_dim = 16
    elif variant == "gh200":
        defaults.enlarge(c)
    elif variant != "default":
        raise ValueError(f"variant {variant!r}; there are default, tiny, gh200")
    return c
