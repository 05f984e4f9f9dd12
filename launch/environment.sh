# shellcheck shell=bash disable=SC2034
# Sourced on the machine that computes: finds the Python of its architecture and leaves the
# beginning of a command in `python`.
#   XEC_ENV      folder of a venv, name of a conda environment, or an Apptainer image (*.sif);
#                default in a job: xec_jax-gh on partitions gh* (aarch64), else xec_jax (x86-64);
#                outside of jobs: the python at hand
#   XEC_MODULES  modules to load first, by spaces. JAX brings its CUDA libraries: no CUDA module,
#                whose LD_LIBRARY_PATH would put other versions in front of them

export PYTHONUNBUFFERED=1 # log lines when they happen, not when 8 kB have come together
export PYTHONNOUSERSITE=1 # ~/.local is the same on x86-64 and aarch64 nodes, and fits one of them

environment=${XEC_ENV:-}
if [[ -z $environment && -n ${SLURM_JOB_PARTITION:-} ]]; then
  case $SLURM_JOB_PARTITION in
  gh*) environment=xec_jax-gh ;;
  *) environment=xec_jax ;;
  esac
fi

set +u # modules and conda read variables that nobody has set
if [[ -n ${XEC_MODULES:-} ]]; then
  if type module >/dev/null 2>&1; then
    read -ra modules <<<"$XEC_MODULES"
    module load "${modules[@]}"
  else
    echo "warning: XEC_MODULES is set, but there is no command module here" >&2
  fi
fi

python=(python)
if [[ $environment == *.sif ]]; then
  python=(apptainer exec --nv "$environment" python)
elif [[ -f $environment/bin/activate ]]; then
  # shellcheck disable=SC1091
  source "$environment/bin/activate"
elif [[ -n $environment ]]; then
  if ! base=$(conda info --base 2>/dev/null); then
    echo "no environment: XEC_ENV=$environment is no venv's folder, and there is no conda here" >&2
    exit 2
  fi
  # shellcheck disable=SC1091
  source "$base/etc/profile.d/conda.sh"
  conda activate "$environment"
fi
set -u
