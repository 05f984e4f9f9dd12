#!/usr/bin/env bash
# One machine, all its GPUs (NUM_GPUS=N: so many), no queue:
#
#   TRAIN_PATH='/data/train*.root' VAL_PATH='/data/valid*.root' EPOCHS=50 launch/local.sh mae
#
# Paths are as seen from the repository. DRY_RUN=1 prints the command and checks the config.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/settings.sh
source launch/settings.sh
for name in NODES SWEEP SWEEP_OPTIONS GRID; do nowhere "$name" "that is for launch/submit.sh"; done
key NUM_GPUS train.mesh.data
# shellcheck source=launch/environment.sh
source launch/environment.sh

command=("${python[@]}" -m xec_jax.train --config "$config" --workdir "$workdir"
  "${resume[@]}" "${overrides[@]}")
if [[ -n $is_dry ]]; then
  printf '%q ' "${command[@]}"
  echo
  command+=(--check_config)
fi
exec "${command[@]}" # in place of this shell, so that signals arrive
