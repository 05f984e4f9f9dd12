#!/usr/bin/env bash
#SBATCH --job-name=xec_jupyter
#SBATCH --output=slurm_logs/%x_%j.out
#SBATCH --ntasks=1
# Jupyter Lab on a compute node; the job's log has the ssh command and the address to open:
#
#   launch/jupyter.sh [PARTITION] [TIME] [PORT]     a100-daily, 02:00:00, 8888
#
# DRY_RUN=1 prints the job and submits nothing. The server listens on the node itself only, behind
# an ssh tunnel and a token.
set -euo pipefail
partition=${1:-a100-daily} time=${2:-02:00:00} port=${3:-8888}
if [[ ! $port =~ ^[1-9][0-9]{3,4}$ ]] || ((port < 1024 || port > 65535)); then
  echo "refused: PORT=$port; expected 1024 to 65535" >&2
  exit 2
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  job=(sbatch "--partition=$partition" "--time=$time" --gres=gpu:1 --cpus-per-task=8 --mem=48G
    --export=ALL launch/jupyter.sh "$partition" "$time" "$port")
  if [[ -n ${DRY_RUN:-} && $DRY_RUN != 0 ]]; then
    printf '%q ' "${job[@]}"
    echo
    exit
  fi
  mkdir -p slurm_logs
  umask 077 # the log has the token
  exec "${job[@]}"
fi

# shellcheck source=launch/environment.sh
source launch/environment.sh
JUPYTER_TOKEN=$("${python[@]}" -c 'import secrets; print(secrets.token_hex(24))')
user=$(id -un)
export JUPYTER_TOKEN # not an argument, which everybody on the node could read
cat <<TEXT
On your own computer:
  ssh -N -L $port:localhost:$port -J $user@${SLURM_SUBMIT_HOST:-LOGIN_NODE} $user@$(hostname)
then open
  http://localhost:$port/lab?token=$JUPYTER_TOKEN
TEXT
# A port that is taken is an error: the tunnel would lead to somebody else's.
exec "${python[@]}" -m jupyterlab --no-browser --ip=127.0.0.1 "--port=$port" --ServerApp.port_retries=0
