"""Keys and values that experiments share; config files start from them.

A config file takes these groups, sets what its experiment wants otherwise and adds keys of its
own, so that the same thing has the same name everywhere.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def calorimeter() -> ConfigDict:
    """Returns an unlocked config for the calorimeter, with every group but `task`."""
    c = engine()
    c.data = data()
    c.model = encoder()
    c.train.loss_fn = "smooth_l1"
    c.train.loss_beta = 1.0
    c.train.npho_threshold = 100.0  # photons; times of fainter sensors count in no loss
    c.eval.opponents = 1000  # events that classical methods and bounds are computed for, then
    return c


def engine() -> ConfigDict:
    """Returns what the engine reads whatever is trained: all but `task`, `data` and `model`."""
    c = ConfigDict()
    c.seed = 42

    c.optim = ConfigDict()
    c.optim.lr = 1e-4
    c.optim.lr_scheduler = placeholder(str)  # None (constant), cosine, onecycle, plateau,
    c.optim.lr_min = 1e-6  # or cosine_restarts; all but onecycle end or stop at lr_min
    c.optim.lr_per_step = False
    c.optim.warmup_epochs = 0.0
    c.optim.max_lr = placeholder(float)  # onecycle: the peak; None: lr
    c.optim.pct_start = 0.3  # onecycle: share of the run that rises
    c.optim.lr_patience = 5  # plateau: validations without improvement before
    c.optim.lr_factor = 0.5  # the rate is multiplied by this
    c.optim.lr_restart_period = 10  # cosine_restarts: epochs of the first period;
    c.optim.lr_restart_mult = 2  # each is this many times as long as the one before
    c.optim.weight_decay = 1e-4
    c.optim.no_decay = ()  # regular expressions on parameter paths
    c.optim.frozen = ()  # regular expressions: parameters that stay as they are
    c.optim.lr_scale = ()  # (regular expression, factor) pairs: other rates for parts
    c.optim.amsgrad = False
    c.optim.grad_clip = 1.0  # global norm; 0 disables
    c.optim.ema_decay = placeholder(float)
    c.optim.ema_warmup = False  # start with min(ema_decay, (1 + t)/(10 + t))

    c.train = ConfigDict()
    c.train.epochs = 20
    c.train.max_steps = 0  # 0: no limit besides the epochs
    c.train.grad_accum_steps = 1
    c.train.init_from = placeholder(str)  # run folder whose weights to start from
    c.train.precision = "float32"  # or bfloat16: parameters, norms and losses stay float32
    c.train.matmul_precision = "default"  # or high, highest: of float32 products on GPUs
    c.train.parallel = "jit"  # or pmap
    c.train.mesh = ConfigDict()
    c.train.mesh.data = 0  # devices that share the events of a step; 0: all
    c.train.mesh.model = 1  # devices that share the parameters (with jit)
    c.train.auto_batch = False  # out of memory: half the batch, twice the accumulation
    c.train.compilation_cache = True
    c.train.skip_nonfinite = True
    c.train.max_skipped_in_row = 50
    c.train.max_skipped_share = 0.01  # of the steps of an epoch, if more than that
    c.train.save_every = 500  # steps; a checkpoint is also made after every validation
    c.train.save_minutes = 0.0  # also after this long without one; 0: never
    c.train.keep_last = 2
    c.train.keep_best = 1

    c.eval = ConfigDict()
    c.eval.every_epochs = 1
    c.eval.seed = 0  # of the masks in validation, so that curves are comparable
    c.eval.figure_events = 2
    c.eval.report = True  # evaluate the best state on all validation events at the end

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.show = ()  # metrics on the console, besides the loss
    c.log.trackers = ()  # mlflow, tensorboard, wandb: copies of metrics.jsonl
    c.log.experiment = placeholder(str)  # name there; None: the task
    c.log.run_name = placeholder(str)  # name there; None: the run folder
    c.log.mlflow_uri = placeholder(str)  # None: MLFLOW_TRACKING_URI, or a file beside the run

    c.export = ConfigDict()
    return c


def data() -> ConfigDict:
    """Returns the group `data`: files, batches, normalization, and the demonstration."""
    c = ConfigDict()
    c.source = "root"  # or tfds: folders made by `python -m xec_jax.data.build`
    c.train = placeholder(object)  # file, folder, glob or a tuple of these; None: demo
    c.valid = placeholder(object)
    c.tree_name = "tree"
    c.npho_branch = "npho"  # photons; `relative_npho` goes with the legacy scheme
    c.time_branch = placeholder(str)  # s; None for files without times
    c.time_branch = "relative_time"
    c.extra_branches = ("run", "event")  # carried along where files have them
    c.batch_size = 128  # events per device and micro-batch
    c.shuffle = True
    c.shuffle_buffer = 16384  # events mixed completely
    c.max_ram_gb = 4.0
    c.num_threads = 4  # decompression
    c.prefetch_factor = 2  # batches on their way to the devices
    c.timeout_s = 600.0  # without a batch; then the reader counts as hanging
    c.on_bad_file = "error"  # or skip: go on without files and entries that cannot be read
    c.derive_relative = False  # make relative_npho from npho
    c.strict_scheme = False  # values that do not fit the normalization end the job
    c.energy_unit = "GeV"  # of the files; or MeV
    c.dead_channels = placeholder(str)  # list of sensors that no event has, here and in predict
    c.fiducial = ConfigDict()  # cut on uvwTruth; None: no cut
    c.fiducial.u = placeholder(float)  # cm, |u| below this; the MEG II analysis has 23.9
    c.fiducial.v = placeholder(float)  # cm, |v| below this; 67.9
    c.fiducial.w = placeholder(float)  # cm, depth from 0 to this

    c.normalization = ConfigDict()
    c.normalization.npho_scheme = "log1p"  # or sqrt, anscombe, linear
    c.normalization.npho_scale = 1000.0  # photons
    c.normalization.npho_scale2 = 4.08
    c.normalization.time_scale = 1.14e-7  # s
    c.normalization.time_shift = -0.46
    c.normalization.sentinel_npho = 0.0
    c.normalization.sentinel_time = -1.0
    c.normalization.npho_threshold = 100.0  # photons; only the `domain` rule uses it here
    c.normalization.invalid_rule = "positive"  # or domain

    c.augment = ConfigDict()  # training only; 0 is off
    c.augment.channel_dropout = 0.0  # probability of losing a sensor
    c.augment.channel_dropout_mode = "invalid"  # or zero, the predecessor's
    c.augment.dead_patterns = placeholder(str)  # bank of dead channels of real runs
    c.augment.dead_pattern_share = 0.0  # of the events, each loses the channels of one run
    c.augment.npho_noise = 0.0  # standard deviation of a sensor's gain, relative
    c.augment.npho_noise_photons = 0.0  # standard deviation of added noise
    c.augment.time_jitter = 0.0  # s, standard deviation per sensor
    c.augment.energy_scale = 0.0  # factor on photons and energy of an event, uniform in 1 +- this
    c.augment.curriculum_steps = 0  # until then events fainter than
    c.augment.curriculum_photons = 0.0  # this, times the part still to come, do not count

    c.demo = ConfigDict()
    c.demo.kind = "lxe"
    c.demo.events = 2048
    c.demo.valid_events = 256
    c.demo.set = ConfigDict()  # what the demo puts in place of the keys of the same name
    c.demo.set.data = ConfigDict({"batch_size": 8, "num_threads": 2})
    c.demo.set.model = ConfigDict({"dropout": 0.0})
    c.demo.set.optim = ConfigDict({"lr": 5e-4, "lr_scheduler": "cosine", "lr_per_step": True})
    c.demo.set.optim.warmup_epochs = 0.2
    c.demo.set.train = ConfigDict({"epochs": 3, "grad_accum_steps": 1})
    c.demo.set.log = ConfigDict({"every": 16})
    return c


def encoder() -> ConfigDict:
    """Returns the group `model`, as far as it describes detector and encoder."""
    c = ConfigDict()
    c.geometry = "physical"  # or documented, for weights of the predecessor
    c.outer_mode = "finegrid"  # or split
    c.outer_fine_pool = (3, 3)  # a divisor of (45, 72); (1, 1) for no pooling
    c.outer_mask = "painted"  # or coarse, the predecessor's
    c.outer_split = "normalized"  # what the fine grid divides over cells; or raw: photons
    c.pool_valid_times = True  # False: pooling averages invalid times, too (predecessor, 2026-01)
    c.zero_hidden_input = True  # False: the first layer sees sentinels (predecessor, 2026-01)
    c.encoder_dim = 1024  # a multiple of 32 and of num_heads
    c.num_fusion_layers = 2
    c.num_heads = 8
    c.dim_feedforward = placeholder(int)  # None: 4 encoder_dim
    c.position = "learned"  # or sinusoidal, geometric, face_type, rotary, none
    c.dropout = 0.1
    c.drop_path_rate = 0.0
    return c


def shrink(c: ConfigDict) -> None:
    """Turns a config into its `tiny` variant: a small network, seconds of simulated data."""
    c.model.encoder_dim = 64
    c.data.batch_size = 8
    c.data.demo.events = 64
    c.data.demo.valid_events = 32
    c.data.demo.set.log.every = 4
    c.train.grad_accum_steps = 1
    c.optim.warmup_epochs = 0.2
    c.eval.figure_events = 1
    c.eval.report = False  # its figures would take longer than the training


def enlarge(c: ConfigDict) -> None:
    """Turns a config into its `gh200` variant: bfloat16 and pmap over all GPUs of a node."""
    c.data.batch_size = 2048  # events per GPU
    c.train.grad_accum_steps = 1
    c.data.num_threads = 16
    c.data.max_ram_gb = 64.0
    c.data.shuffle_buffer = 262144
    c.train.precision = "bfloat16"
    c.train.parallel = "pmap"
    c.optim.lr_scheduler = "cosine"
