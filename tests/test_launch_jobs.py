"""What happens on compute nodes: the step, signals, the queue, environments, Jupyter."""

import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from cluster import LAUNCH, PATIENT, SRUN, STUB, Cluster, wait_for

JOBS = ("slurm.sbatch", "slurm_array.sbatch", "multi_node.sbatch")


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize("name", JOBS)
def test_headers_of_jobs(name):
    text = (LAUNCH / name).read_text()
    options = re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE)
    assert {"--signal=TERM@300", "--requeue", "--open-mode=append"} <= set(options)
    assert "--ntasks-per-node=1" in options
    # All of Slurm's options stand before the first command, or Slurm does not see them.
    assert re.match(r"#!/usr/bin/env bash\n(#.*\n)+set -euo pipefail\n", text)


def job(cluster, name="slurm.sbatch", **variables):
    words = ["--", "xec_jax.train", "--x", "a b"] if "array" in name else ["--x", "a b"]
    defaults = {"SLURM_JOB_ID": "17", "SLURM_JOB_PARTITION": "gh-daily"}
    if "array" in name:
        defaults |= {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"}
    return cluster.run(name, *words, **{**defaults, **variables})


@pytest.mark.parametrize("name", JOBS)
def test_requeue_after_75_only(cluster, name):
    for code in (0, 1, 2, 3, 4, 130, 137):
        assert job(cluster, name, EXIT_python=str(code))[0] == code
    assert not cluster.calls("scontrol")
    assert job(cluster, name, EXIT_python="75", SLURM_RESTART_COUNT="49")[0] == 75
    expected = "15_2" if "array" in name else "17"
    assert cluster.calls("scontrol") == [["requeue", expected]]
    assert cluster.calls("python")[-1] == ["-m", "xec_jax.train", "--x", "a b"]
    command = ["python", "-m", "xec_jax.train", "--x", "a b"]
    assert cluster.calls("srun")[-1] == ["--kill-on-bad-exit=0", "--wait=900", *command]
    assert job(cluster, name, EXIT_python="75", EXIT_scontrol="1")[0] == 75


@pytest.mark.parametrize(
    "variables",
    [
        *({"SLURM_JOB_ID": text} for text in ("", "1; touch evil", "$(touch evil)", "1 2", "-1")),
        *({"SLURM_JOB_ID": text} for text in ("1_", "1\n2", "٣")),
        {"SLURM_ARRAY_JOB_ID": "5"},
        {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "x"},
        {"SLURM_RESTART_COUNT": "50"},
        {"SLURM_RESTART_COUNT": "3", "MAX_REQUEUES": "3"},
        {"SLURM_RESTART_COUNT": "x[$(touch evil)]"},
        {"MAX_REQUEUES": "x[$(touch evil)]"},
    ],
)
def test_strange_jobs_never_reach_scontrol(cluster, variables):
    code, _, err = job(cluster, EXIT_python="75", **variables)
    assert (code, "not requeued" in err) == (75, True)
    assert not cluster.calls("scontrol")
    assert not (cluster.root / "evil").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_to_the_job_lets_the_step_save_and_requeues_nothing(cluster, number, times):
    cluster.add("python", PATIENT)
    process = cluster.start("slurm.sbatch", SLURM_JOB_ID="17")
    wait_for(Path(f"{cluster.record}.started"))
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.05)
    process.communicate(timeout=30)
    assert process.returncode == 75  # the step's own code, after its own time
    assert not cluster.calls("scontrol")


def test_a_signal_to_the_step_alone_requeues(cluster):
    """What --signal=TERM@300 does: Slurm tells the processes of the step."""
    cluster.add("python", PATIENT.replace("' TERM", "' INT").replace("' USR1", "' TERM"))
    cluster.add("srun", SRUN.replace("exec ", 'echo $$ >"$RECORD.pid"; exec '))
    process = cluster.start("slurm.sbatch", SLURM_JOB_ID="17")
    wait_for(Path(f"{cluster.record}.started"))
    os.kill(int(Path(f"{cluster.record}.pid").read_text()), signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert cluster.calls("scontrol") == [["requeue", "17"]]


def test_what_a_job_sets_for_its_step(cluster):
    job(cluster, SLURM_CPUS_PER_TASK="16")
    seen = cluster.seen_by("python")
    assert seen["SRUN_CPUS_PER_TASK"] == "16"
    assert seen["JAX_PLATFORMS"] == "cuda"  # with the CPU in it, a missing GPU would be no error
    assert seen["PYTHONUNBUFFERED"] == seen["PYTHONNOUSERSITE"] == "1"
    assert not [name for name in seen if name.startswith(("XLA_", "NCCL_"))]
    job(cluster, JAX_PLATFORMS="cpu")  # a login shell's, which --export=ALL brings along
    assert cluster.seen_by("python")["JAX_PLATFORMS"] == "cuda"
    job(cluster, JAX_PLATFORMS="cuda", XEC_PLATFORMS="cpu")
    assert cluster.seen_by("python")["JAX_PLATFORMS"] == "cpu"


CONDA = r"""#!/usr/bin/env bash
echo "$CONDA_BASE"
"""


@pytest.mark.parametrize(
    ("partition", "chosen", "expected"),
    [
        ("a100-daily", "", "xec_jax"),
        ("gh-daily", "", "xec_jax-gh"),
        ("gh-daily", "mine", "mine"),
    ],
)
def test_the_partition_chooses_the_environment(cluster, tmp_path, partition, chosen, expected):
    (tmp_path / "etc/profile.d").mkdir(parents=True)
    (tmp_path / "etc/profile.d/conda.sh").write_text('conda() { export ACTIVE="$* $UNSET"; }\n')
    cluster.add("conda", CONDA)
    variables = {"SLURM_JOB_PARTITION": partition, "XEC_ENV": chosen, "CONDA_BASE": str(tmp_path)}
    assert job(cluster, **variables)[0] == 0
    assert cluster.seen_by("python")["ACTIVE"].strip() == f"activate {expected}"


def test_a_missing_environment_is_an_error(cluster):
    cluster.add("conda", "#!/usr/bin/env bash\nexit 1\n")
    code, _, err = job(cluster, XEC_ENV="nowhere")
    assert (code, "XEC_ENV=nowhere" in err) == (2, True)
    assert not cluster.calls("srun")


def test_a_container_runs_the_command(cluster):
    job(cluster, XEC_ENV="/images/xec 1.sif")
    words = ["exec", "--nv", "/images/xec 1.sif", "python", "-m", "xec_jax.train", "--x", "a b"]
    assert cluster.calls("apptainer") == [words]


def test_modules_are_loaded_where_there_are_any(cluster):
    _, _, err = job(cluster, XEC_MODULES="anaconda/2024.08 git")
    assert "no command module" in err
    function = {"BASH_FUNC_module%%": '() { printf "<%s>" "$@"; }'}
    _, out, err = job(cluster, XEC_MODULES="anaconda/2024.08 *", **function)
    assert (out, err) == ("<load><anaconda/2024.08><*>", "")


def test_jupyter_listens_to_the_node_alone_and_wants_a_token(cluster):
    cluster.run("jupyter.sh", "gh-daily", "01:00:00", "9000")
    (words,) = cluster.calls("sbatch")
    assert words[:2] == ["--partition=gh-daily", "--time=01:00:00"]
    assert words[-4:] == ["launch/jupyter.sh", "gh-daily", "01:00:00", "9000"]
    cluster.add("python", STUB.replace("env >", "[[ $1 == -m ]] || echo 5ec4e7; env >"))
    _, out, _ = cluster.run("jupyter.sh", *words[-3:], SLURM_JOB_ID="3", SLURM_SUBMIT_HOST="login1")
    assert "ssh -N -L 9000:localhost:9000 -J " in out
    assert "@login1" in out
    assert "http://localhost:9000/lab?token=5ec4e7" in out
    started = cluster.calls("python")[-1]
    assert started[:2] == ["-m", "jupyterlab"]
    assert {"--ip=127.0.0.1", "--port=9000"} <= set(started)
    assert not any("token" in word or "0.0.0.0" in word for word in started)  # ps shows words
    assert cluster.seen_by("python")["JUPYTER_TOKEN"] == "5ec4e7"


def test_a_dry_run_of_jupyter_prints_the_job_and_submits_nothing(cluster):
    words = ("jupyter.sh", "gh daily", "01:00:00", "9000")
    code, out, err = cluster.run(*words, DRY_RUN="1")
    assert (code, err, cluster.calls("sbatch")) == (0, "", [])
    assert not (cluster.root / "slurm_logs").exists()
    cluster.run(*words, DRY_RUN="0")
    assert shlex.split(out) == ["sbatch", *cluster.calls("sbatch")[0]]


@pytest.mark.parametrize("port", ["80", "70000", "x[$(touch evil)]", "99999", "010000"])
def test_jupyter_refuses_other_ports(cluster, port):
    assert cluster.run("jupyter.sh", "a", "1", port)[0] == 2
    assert not cluster.calls("sbatch")
    assert not (cluster.root / "evil").exists()
