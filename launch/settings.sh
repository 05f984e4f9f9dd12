# shellcheck shell=bash disable=SC2034
# Sourced by local.sh and submit.sh: the first argument, TASK[:VARIANT], and variables become
# `config`, `run_name`, `workdir`, `resume` and `overrides`. A variable that is unset or empty adds nothing,
# so the config file decides; docs/cluster.md lists them. The config loader judges keys and values.

refuse() {
  printf 'refused: %s\n' "$*" >&2
  exit 2
}

# key VARIABLE KEY: sets a key of the config.
key() {
  if [[ -n ${!1:-} ]]; then overrides+=("--config.$2=${!1}"); fi
}

# nowhere VARIABLE REASON: refuses what the predecessor's scripts knew and nothing here would obey.
nowhere() {
  [[ -z ${!1:-} ]] || refuse "$1 is set: $2"
}

[[ $# == 1 && $1 =~ ^([a-z][a-z0-9_]*)(:[a-z0-9_]+)?$ ]] ||
  refuse "arguments ($*); expected one, a file in configs/: mae, regress or mae:gh200. The rest are variables"
config=${CONFIG_PATH:-configs/${BASH_REMATCH[1]}.py${BASH_REMATCH[2]}}

# The name becomes a folder, a job's name and part of a log's name, where Slurm expands %.
# Many runs have a folder of their own, beside that of a plain training.
run_name=${RUN_NAME:-${1/:/-}${SWEEP:+-sweep}${GRID:+-grid}}
[[ $run_name =~ ^[A-Za-z0-9][A-Za-z0-9._+=-]*$ ]] ||
  refuse "RUN_NAME=$run_name; expected letters, digits and . _ + = -, beginning with a letter or digit"
workdir=${SAVE_DIR:-runs}/$run_name

nowhere CHUNK_SIZE "events are mixed in a buffer; XEC_OVERRIDES=data.shuffle_buffer=EVENTS"
nowhere ONNX "exporting is no part of a training"
resume=() # of a training, beside the overrides
if [[ -f ${RESUME_FROM:-}/config.json && $RESUME_FROM -ef $workdir ]]; then
  resume=(--resume must)
else
  nowhere RESUME_FROM "the same RUN_NAME and SAVE_DIR continue by themselves, here $workdir;
  XEC_OVERRIDES=train.init_from=RUN takes the weights of another run alone"
fi
[[ -z ${BATCH:-} || -z ${BATCH_SIZE:-} ]] || refuse "BATCH and BATCH_SIZE are one thing; set one"
[[ ${MAE_CHECKPOINT:-} != *.pth ]] ||
  refuse "MAE_CHECKPOINT is a run folder; python -m xec_jax.convert makes one of $MAE_CHECKPOINT"

overrides=()
key TRAIN_PATH data.train
key VAL_PATH data.valid
key BATCH data.batch_size
key BATCH_SIZE data.batch_size
key CHANNEL_DROPOUT_RATE data.augment.channel_dropout
key NPHO_SCALE data.normalization.npho_scale
key NPHO_SCALE2 data.normalization.npho_scale2
key TIME_SCALE data.normalization.time_scale
key TIME_SHIFT data.normalization.time_shift
key SENTINEL_VALUE data.normalization.sentinel_time
key OUTER_MODE model.outer_mode
key HIDDEN_DIM model.hidden_dim
key DROP_PATH_RATE model.drop_path_rate
key MASK_RATIO model.mask_ratio
key FREEZE_ENCODER model.freeze_encoder
key LR optim.lr
key LR_SCHEDULER optim.lr_scheduler
key LR_MIN optim.lr_min
key WARMUP_EPOCHS optim.warmup_epochs
key WEIGHT_DECAY optim.weight_decay
key GRAD_CLIP optim.grad_clip
key EMA_DECAY optim.ema_decay
key EPOCHS train.epochs
key MAE_CHECKPOINT train.init_from
key LOSS_FN train.loss_fn
key LOSS_BALANCE train.loss_balance
key NPHO_WEIGHT train.npho_weight
key TIME_WEIGHT train.time_weight
key AUTO_WEIGHT train.auto_channel_weight
key MLFLOW_EXPERIMENT log.experiment
if [[ -n ${MLFLOW_EXPERIMENT:-} && " ${XEC_OVERRIDES:-}" != *[[:space:]]log.trackers=* ]]; then
  overrides+=("--config.log.trackers=('mlflow',)") # an experiment alone would be heard by nobody
fi

if [[ ${OUTER_FINE_POOL:-} =~ ^([0-9]+)[\ ,]+([0-9]+)$ ]]; then # "3 3", as it used to be written
  overrides+=("--config.model.outer_fine_pool=(${BASH_REMATCH[1]},${BASH_REMATCH[2]})")
else
  key OUTER_FINE_POOL model.outer_fine_pool
fi

if [[ -n ${TASKS:-} ]]; then # exactly these
  read -ra chosen <<<"${TASKS//,/ }"
  for name in angle energy timing uvwFI angleVec n_gamma; do
    [[ " ${chosen[*]} " == *" $name "* ]] || overrides+=("--config.train.tasks.$name.enabled=false")
  done
  for name in "${chosen[@]}"; do overrides+=("--config.train.tasks.$name.enabled=true"); done
fi

# The one variable that is split into words: "optim.amsgrad=true train.keep_last=5".
read -r -d '' -a words <<<"${XEC_OVERRIDES:-}" || true
for word in "${words[@]}"; do overrides+=("--config.$word"); done

is_dry=
[[ -z ${DRY_RUN:-} || $DRY_RUN == 0 ]] || is_dry=yes
