# shellcheck shell=bash
# Sourced by the .sbatch files, in the folder of the repository.

# shellcheck source=launch/environment.sh
source launch/environment.sh

# A missing GPU is an error, not a night of training on the CPU: with "cuda,cpu" JAX takes the CPU
# without a word where it sees no GPU, and --export=ALL brings along a JAX_PLATFORMS=cpu of the login
# shell. Nothing here needs the CPU as a device. How much memory JAX takes
# (XLA_PYTHON_CLIENT_MEM_FRACTION) stays as it is: 75 % of each GPU, at the start.
export JAX_PLATFORMS="${XEC_PLATFORMS:-cuda}"
# Since Slurm 22.05 a step does not inherit this, and would read data with a single core.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# run_step MODULE ARGUMENT...: runs the command on all nodes and leaves with its exit code; after
# code 75, stopped and saved, the job goes back to the queue first.
#
# --signal=TERM@300 without B: reaches the step's processes directly, and not this shell. When this
# shell is told to stop, Slurm is ending the job (scancel) or requeues it by itself (preemption):
# then the step may save, and nothing is requeued here. The step is told by USR1, since srun passes
# that on, but answers TERM by killing its processes at once.
run_step() {
  local told='' before code
  trap 'told+=x; kill -USR1 "$(jobs -p)" 2>/dev/null || true' TERM USR1
  # One process that leaves, saved, must not take those with it that are still saving.
  srun --kill-on-bad-exit=0 --wait=900 "${python[@]}" -m "$@" &
  while :; do
    before=$told code=0
    wait $! || code=$?
    [[ $told != "$before" ]] || break # else a signal cut `wait` short: bash keeps the step's code
  done
  if [[ $code == 75 && -z $told ]]; then requeue; fi
  exit "$code"
}

requeue() {
  local id=${SLURM_JOB_ID:-} count=${SLURM_RESTART_COUNT:-0} most=${MAX_REQUEUES:-50}
  # The plain number of an array's last task is that of the whole array.
  [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}
  if [[ ! $id =~ ^[0-9]+(_[0-9]+)?$ ]]; then
    echo "not requeued: '$id' is no job's number" >&2
  elif [[ ! $count =~ ^[0-9]+$ || ! $most =~ ^[0-9]+$ ]]; then
    echo "not requeued: '$count' times of '$most' (MAX_REQUEUES) are no numbers" >&2
  elif ((10#$count >= 10#$most)); then
    echo "not requeued: it was $count times already (MAX_REQUEUES)" >&2
  else
    echo "stopped and saved: job $id goes back to the queue (time $((10#$count + 1)))"
    scontrol requeue "$id" || echo "not requeued: scontrol failed; submit the same again" >&2
  fi
}
