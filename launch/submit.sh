#!/usr/bin/env bash
# Submits a training to Slurm, after checking its config here:
#
#   RUN_NAME=mae1 EPOCHS=50 launch/submit.sh mae             one node, one A100
#   PARTITION=gh-daily NUM_GPUS=4 launch/submit.sh mae:gh200   one node, four GH200
#   NODES=2 NUM_GPUS=4 launch/submit.sh mae                  two nodes
#   SWEEP=8 SWEEP_OPTIONS='--trials 100' launch/submit.sh mae   8 workers on one study, runs/mae-sweep
#   GRID=grid.txt launch/submit.sh mae                       one job per line "optim.lr=1e-4 seed=1"
#
# Paths are as seen from the repository. DRY_RUN=1 prints the exact job, checks the config and
# submits nothing. Slurm's own variables (SBATCH_ACCOUNT, SBATCH_QOS, ...) work as always.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/settings.sh
source launch/settings.sh

# count VARIABLE DEFAULT: its value, if that is a number worth counting to.
count() {
  local value=${!1:-$2}
  [[ $value =~ ^[1-9][0-9]{0,4}$ ]] || refuse "$1=$value; expected a whole number from 1"
  echo "$value"
}

nodes=$(count NODES 1)
gpus=$(count NUM_GPUS 1)
partition=${PARTITION:-a100-daily}
case $partition in
gh*) gpu_cpus=16 gpu_memory=96 ;; # what the variant gh200 reads with and keeps in memory
*) gpu_cpus=8 gpu_memory=48 ;;
esac
cpus=$(count CPUS $((gpu_cpus * gpus)))
job=(sbatch "--job-name=$run_name" "--partition=$partition"
  "--time=${TIME:-12:00:00}" "--nodes=$nodes" "--gres=gpu:$gpus" "--cpus-per-task=$cpus"
  "--mem=${MEM:-$((gpu_memory * gpus))G}" --export=ALL)

lines=() # of GRID, by their numbers in the file
if [[ -n ${GRID:-} ]]; then
  [[ -r $GRID ]] || refuse "GRID=$GRID; expected a file with a line of KEY=VALUE words per job"
  number=0
  while read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ -z $line || $line == \#* ]] || lines[number]=$line
  done <"$GRID"
  ((${#lines[@]})) || refuse "GRID=$GRID has no lines"
fi
is_array=${SWEEP:-}${GRID:-}
[[ -z ${SWEEP:-} || -z ${GRID:-} ]] || refuse "SWEEP and GRID are two ways to search; set one"
[[ -z $is_array || $nodes == 1 ]] || refuse "NODES=$nodes with SWEEP or GRID; each of their jobs has one node"
[[ -z $is_array || -z ${resume[*]} ]] || refuse "RESUME_FROM with SWEEP or GRID, which continue by themselves"
[[ -z ${SWEEP_OPTIONS:-} || -n ${SWEEP:-} ]] || refuse "SWEEP_OPTIONS is set without SWEEP"

train=(--config "$config" --workdir "$workdir" "${overrides[@]}")
if [[ -n ${SWEEP:-} ]]; then
  workers=$(count SWEEP 1)
  read -ra options <<<"${SWEEP_OPTIONS:-}"
  sweep=(--config "$config" --output "$workdir" "${options[@]}" "${overrides[@]}")
  job+=("--array=0-$((workers - 1))" launch/slurm_array.sbatch -- xec_jax.sweep "${sweep[@]}")
elif [[ -n ${GRID:-} ]]; then
  train=(--config "$config" --workdir "$workdir/%a" "${overrides[@]}")
  job+=("--array=0-$((${#lines[@]} - 1))" launch/slurm_array.sbatch
    "${lines[@]}" -- xec_jax.train "${train[@]}")
elif ((nodes > 1)); then
  job+=(launch/multi_node.sbatch "${train[@]}" "${resume[@]}")
else
  job+=(launch/slurm.sbatch "${train[@]}" "${resume[@]}")
fi

# here MODULE ARGUMENT...: runs a command on this node, with the python at hand: that of the job may
# be for other processors.
here() {
  JAX_PLATFORMS=cpu "${PYTHON:-python}" -m "$@"
}

# Of a Python that cannot do it, one line; else every line of a grid would bring two tracebacks.
JAX_PLATFORMS=cpu "${PYTHON:-python}" -c \
  'import sys, xec_jax, ml_collections; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  refuse "${PYTHON:-python} here is no Python 3.11 or newer with xec_jax's packages, which the check of the config needs; activate its environment or set PYTHON=..."

# each COMMAND...: calls it with the arguments of every training; `place` says where those stand.
each() {
  if ((!${#lines[@]})); then "$@" "${train[@]}"; fi
  local number words k=0
  for number in "${!lines[@]}"; do
    read -ra words <<<"${lines[number]}"
    place="$GRID, line $number: ${lines[number]}"
    "$@" "${train[@]//%a/$k}" "${words[@]/#/--config.}"
    k=$((k + 1))
  done
}
place=

# check MODULE ARGUMENT...: ends this script if the command finds fault with the config.
check() {
  local code=0
  here "$@" || code=$?
  if [[ $code != 0 && -n $place ]]; then echo "in $place" >&2; fi
  if ((code == 2)) || [[ $code != 0 && -n $is_dry ]]; then exit "$code"; fi
  if ((code)); then echo "warning: the config cannot be checked here; the job will do it" >&2; fi
}

register() {
  here xec_jax.runs register "$@" || echo "warning: the run could not be registered" >&2
}

# withdraw --config FILE --workdir DIR ...: takes the registration back; a run that has begun keeps
# its state.
withdraw() {
  [[ -e $4/config.json ]] || here xec_jax.runs fail "$4" --reason "sbatch refused it" ||
    echo "warning: $4 may still be registered" >&2
}

if [[ -n $is_dry ]]; then
  printf '%q ' "${job[@]}"
  echo
fi
if [[ -n ${SWEEP:-} ]]; then
  check xec_jax.sweep --dry_run "${sweep[@]}"
else
  each check xec_jax.train --check_config
fi
if [[ -n $is_dry ]]; then exit; fi
if [[ -z ${SWEEP:-} ]]; then each register; fi # a sweep knows its runs when it makes them
mkdir -p slurm_logs # Slurm does not, and a job without its log's folder dies in silence
"${job[@]}" || {
  code=$?
  if [[ -z ${SWEEP:-} ]]; then each withdraw; fi
  exit "$code"
}
