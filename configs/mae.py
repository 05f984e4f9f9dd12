"""Masked-autoencoder pretraining of the calorimeter's encoder (45,031,436 parameters).

Data: ROOT files with the branches `npho` (photons) and `relative_time` (s), [4760] each.

    python -m xec_jax.train --config configs/mae.py --config.data.train='/data/train*.root' \
        --config.data.valid='/data/valid*.root'

Without a path the same command trains on a small simulated sample, with the settings under
`data.demo.set` in place of those below, so that two CPU cores finish in minutes.

Variants: `default`; `tiny`, a small network that shows that everything works and, in its 24 steps,
learns next to nothing;
`gh200`, large batches in bfloat16 with pmap over all GPUs of a node.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "default") -> ConfigDict:
    """Returns the configuration of a variant."""
    c = ConfigDict()
    c.task = "mae"
    c.seed = 42

    c.data = ConfigDict()
    c.data.source = "root"
    c.data.train = placeholder(object)  # file, folder, glob or a tuple of these; None: demo
    c.data.valid = placeholder(object)
    c.data.tree_name = "tree"
    c.data.npho_branch = "npho"  # photons; `relative_npho` goes with the legacy scheme
    c.data.time_branch = "relative_time"  # s
    c.data.extra_branches = ("run", "event")  # carried along where files have them
    c.data.batch_size = 128  # events per device and micro-batch; about 70 MB each in float32
    c.data.shuffle = True
    c.data.shuffle_buffer = 16384  # events mixed completely
    c.data.max_ram_gb = 4.0
    c.data.num_threads = 4  # decompression
    c.data.prefetch_factor = 2  # batches on their way to the devices
    c.data.normalization = ConfigDict()
    c.data.normalization.npho_scheme = "log1p"  # or sqrt, anscombe, linear
    c.data.normalization.npho_scale = 1000.0  # photons
    c.data.normalization.npho_scale2 = 4.08
    c.data.normalization.time_scale = 1.14e-7  # s
    c.data.normalization.time_shift = -0.46
    c.data.normalization.sentinel_npho = 0.0
    c.data.normalization.sentinel_time = -1.0
    c.data.normalization.npho_threshold = 100.0  # photons; only the `domain` rule uses it here
    c.data.normalization.invalid_rule = "positive"  # or domain
    c.data.demo = ConfigDict()
    c.data.demo.kind = "lxe"
    c.data.demo.events = 2048
    c.data.demo.valid_events = 256
    c.data.demo.set = ConfigDict()  # what the demo puts in place of the keys of the same name
    c.data.demo.set.data = ConfigDict({"batch_size": 8, "num_threads": 2})
    c.data.demo.set.model = ConfigDict({"dropout": 0.0})
    c.data.demo.set.optim = ConfigDict({"lr": 5e-4, "lr_scheduler": "cosine", "lr_per_step": True})
    c.data.demo.set.optim.warmup_epochs = 0.2
    c.data.demo.set.train = ConfigDict({"epochs": 3, "grad_accum_steps": 1})
    c.data.demo.set.log = ConfigDict({"every": 16})

    c.model = ConfigDict()
    c.model.geometry = "physical"  # or documented, for weights of the predecessor
    c.model.outer_mode = "finegrid"  # or split
    c.model.outer_fine_pool = (3, 3)  # a divisor of (45, 72)
    c.model.outer_mask = "painted"  # or coarse, the predecessor's
    c.model.encoder_dim = 1024
    c.model.num_fusion_layers = 2
    c.model.num_heads = 8
    c.model.dropout = 0.1
    c.model.drop_path_rate = 0.0
    c.model.decoder_dim = 128
    c.model.predict_channels = ("npho", "time")
    c.model.mask_ratio = 0.65  # share of the maskable sensors of each event
    c.model.maskable = "npho"  # sensors with this channel valid may be hidden; predecessor: time
    c.model.time_mask_ratio_scale = 1.0  # above 1 hides bright sensors more often

    c.optim = ConfigDict()
    c.optim.lr = 2.5e-4
    c.optim.lr_scheduler = placeholder(str)  # None (constant) or cosine
    c.optim.lr_min = 1e-8
    c.optim.lr_per_step = False
    c.optim.warmup_epochs = 3.0
    c.optim.weight_decay = 5e-5
    c.optim.no_decay = ()  # regular expressions on parameter paths
    c.optim.grad_clip = 1.0  # global norm; 0 disables
    c.optim.ema_decay = placeholder(float)

    c.train = ConfigDict()
    c.train.epochs = 20
    c.train.max_steps = 0  # 0: no limit besides the epochs
    c.train.grad_accum_steps = 8  # 1024 events per device and step
    c.train.precision = "float32"  # or bfloat16: parameters, norms and losses stay float32
    c.train.parallel = "jit"  # or pmap
    c.train.devices = 0  # 0: all
    c.train.skip_nonfinite = True
    c.train.max_skipped_in_row = 50
    c.train.save_every = 500  # steps; a checkpoint is also made after every validation
    c.train.keep_last = 2
    c.train.keep_best = 1
    c.train.loss_fn = "smooth_l1"
    c.train.loss_beta = 1.0
    c.train.npho_weight = 1.0
    c.train.time_weight = 1.0
    c.train.npho_threshold = 100.0  # photons; fainter sensors do not count in the time loss
    c.train.use_npho_time_weight = True  # weight times by sqrt(photons)

    c.eval = ConfigDict()
    c.eval.every_epochs = 1
    c.eval.seed = 0  # of the masks in validation, so that curves are comparable
    c.eval.figure_events = 2

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.show = ("r2_npho", "r2_time", "mae_photons", "mae_time_ns")

    c.export = ConfigDict()

    if variant == "tiny":
        c.model.encoder_dim = 64
        c.model.decoder_dim = 16
        c.data.demo.events = 64
        c.data.demo.valid_events = 32
        c.data.demo.set.log.every = 4
        c.data.batch_size = 8
        c.train.grad_accum_steps = 1
        c.optim.warmup_epochs = 0.2
        c.eval.figure_events = 1
    elif variant == "gh200":
        c.data.batch_size = 2048  # events per GPU
        c.train.grad_accum_steps = 1
        c.data.num_threads = 16
        c.data.max_ram_gb = 64.0
        c.data.shuffle_buffer = 262144
        c.train.precision = "bfloat16"
        c.train.parallel = "pmap"
        c.optim.lr_scheduler = "cosine"
    elif variant != "default":
        raise ValueError(f"variant {variant!r}; there are default, tiny, gh200")
    return c
