"""Checkpoints that are damaged, foreign, pinned, or do not fit on the disk."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from xec_jax.errors import CheckpointError, DiskError
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.mesh import make_mesh, replicated
from xec_jax.train.step import TrainState
from xec_jax.train.step_folders import MANIFEST, METRIC, StepFolders

FACTS = {"config": {}, "record": {"toy": 1}}


def make_state(step=1, n=256, dtype=jnp.float32):
    """A state whose arrays tell the step."""
    params = {"kernel": jnp.arange(8 * n, dtype=dtype).reshape(8, n) + step}
    count = jnp.zeros((), jnp.int32)
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        opt_state=(params, None),
        ema=None,
        rng=jax.random.PRNGKey(step),
        skipped=count,
        skipped_in_row=count,
    )


def save(folder, steps, metrics=(), **options):
    with Checkpoints(folder, **{"keep_last": 9, **options}) as checkpoints:
        for k, step in enumerate(steps):
            metric = metrics[k] if metrics else None
            checkpoints.save(make_state(step), FACTS, metric)
            checkpoints.wait()


def restore(folder, template=None, **options):
    with Checkpoints(folder, **options) as checkpoints:
        device = SingleDeviceSharding(jax.devices()[0])
        return checkpoints.restore(make_state() if template is None else template, device)


def equal(a, b):
    return all(
        np.array_equal(x, y) and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def largest(path):
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path):
    file = largest(path / "state")
    file.write_bytes(file.read_bytes()[:-7])
    return f"{file.relative_to(path)} has "


def flip(path):
    file = largest(path / "state")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return f"{file.relative_to(path)} has other contents"


def flip_facts(path):
    file = path / "meta" / "metadata"
    file.write_text(file.read_text().replace("toy", "joy"))
    return "meta/metadata has other contents"


def lose(path):
    file = largest(path / "state")
    file.unlink()
    return f"{file.relative_to(path)} is missing"


def lose_metadata(path):
    (path / "state" / "_METADATA").unlink()
    return "state/_METADATA is missing"


def empty(path):
    shutil.rmtree(path)
    path.mkdir()
    return "the folder is empty"


def replace(path):
    """Somebody else's files under the name of a step."""
    shutil.rmtree(path)
    path.mkdir()
    (path / "model.pth").write_text("weights")
    return ""


def link(path):
    file = largest(path / "state")
    file.rename(path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")
    return "is a symbolic link"


def spoil_manifest(path):
    (path / MANIFEST).write_text('{"files": ')
    return f"{MANIFEST} is damaged"


DAMAGES = [truncate, flip, flip_facts, lose, lose_metadata, empty, replace, link, spoil_manifest]

# orbax leaves threads of its event loop behind when a read fails.
tolerant = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@tolerant
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_step_is_named_and_set_aside_and_the_older_one_used(tmp_path, caplog, damage):
    folder = tmp_path / "checkpoints"
    save(folder, (1, 2))
    message = damage(folder / "2")
    assert equal(restore(folder, read_only=True), make_state(1))
    assert (folder / "2").exists(), "whoever only reads changes nothing"
    assert equal(restore(folder), make_state(1))
    assert "step 2: " in caplog.text
    assert message in caplog.text
    assert (folder / "2.corrupt").is_dir()
    save(folder, [2])
    assert equal(restore(folder), make_state(2)), "the run can make this step again"
    damage(folder / "2")
    restore(folder)
    assert (folder / "2.corrupt.2").is_dir(), "nothing rejected is ever deleted"


@tolerant
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_of_a_damaged_step_are_refused(tmp_path, damage):
    save(tmp_path / "c", [1])
    message = damage(tmp_path / "c" / "1")
    with (
        Checkpoints(tmp_path / "c", read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match=r"step 1 .* cannot be read") as error,
    ):
        checkpoints.restore_params(1)
    assert message in str(error.value)


@tolerant
def test_if_no_step_is_good_none_is_touched(tmp_path):
    """Otherwise the next start would begin anew and nobody would notice."""
    save(tmp_path / "c", (1, 2))
    flip(tmp_path / "c" / "1")
    empty(tmp_path / "c" / "2")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"step 2: .* step 1: .*sha256"):
            restore(tmp_path / "c")


def test_intact_step_without_damage_restores_everything(tmp_path):
    save(tmp_path / "c", [3])
    listed = json.loads((tmp_path / "c" / "3" / MANIFEST).read_text())["files"]
    there = {
        p.relative_to(tmp_path / "c" / "3").as_posix()
        for p in (tmp_path / "c" / "3").rglob("*")
        if p.is_file()
    }
    assert there - set(listed) <= {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}
    (tmp_path / "c" / "3" / "_CHECKPOINT_METADATA").write_text("not read")
    (tmp_path / "c" / "3" / "notes.txt").write_text("a file that came later does no harm")
    (tmp_path / "c" / "README").write_text("nor beside the steps")
    (tmp_path / "c" / "old").mkdir()
    assert equal(restore(tmp_path / "c"), make_state(3))


def test_step_without_manifest_is_used_with_a_warning(tmp_path, caplog):
    save(tmp_path / "c", [1])
    (tmp_path / "c" / "1" / MANIFEST).unlink()
    assert equal(restore(tmp_path / "c"), make_state(1))
    assert "cannot be verified" in caplog.text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (make_state(n=128), r"params/kernel: saved \(\(8, 256\), 'float32'\), wanted \(\(8, 128\)"),
        (make_state(dtype=jnp.bfloat16), r"saved .*'float32'\), wanted .*'bfloat16'"),
        (make_state().replace(ema={"kernel": jnp.zeros(3)}), "ema/kernel: saved absent"),
    ],
    ids=["width", "dtype", "average"],
)
def test_another_network_is_refused_with_two_ways_out(tmp_path, template, message):
    save(tmp_path / "run" / "checkpoints", [1])
    with pytest.raises(CheckpointError, match=message) as error:
        restore(tmp_path / "run" / "checkpoints", template)
    assert "the config of that run" in error.value.remedy
    assert f"--config.train.init_from={tmp_path / 'run'}" in error.value.remedy
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


def test_newest_best_and_pinned_steps_stay(tmp_path):
    options = {"keep_last": 2, "keep_best": 1}
    save(tmp_path / "c", (1, 2), metrics=(0.7, 0.2), **options)
    (tmp_path / "c" / "1" / "PINNED").touch()
    save(tmp_path / "c", (3, 4, 5, 6), metrics=(0.5, 0.4, 0.9, 0.3), **options)
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.steps == [1, 2, 5, 6]
        assert checkpoints.best_step == 2
        checkpoints.restore_params(1)


def test_metric_may_come_later(tmp_path):
    """A run that was stopped at the end of an epoch validates when it resumes."""
    folder = tmp_path / "c"
    with Checkpoints(folder, keep_last=1, keep_best=1) as checkpoints:
        checkpoints.save(make_state(1), FACTS, 0.5)
        checkpoints.save(make_state(2), FACTS)
    with Checkpoints(folder, keep_last=1, keep_best=1) as checkpoints:
        assert checkpoints.meta(2)["metric"] is None
        checkpoints.save(make_state(2), FACTS, 0.25)
        assert checkpoints.meta(2) == {**FACTS, "metric": 0.25}
        assert checkpoints.best_step == 2
        checkpoints.save(make_state(3), FACTS)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 3], "kept as the best one"
    assert StepFolders(folder).fault(2) is None


def test_late_metric_does_not_vouch_for_files_that_nobody_has_verified(tmp_path, caplog):
    folder = tmp_path / "c"
    save(folder, [1])
    (folder / "1" / MANIFEST).unlink()
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(make_state(1), FACTS, 0.25)
        assert checkpoints.meta(1) == {**FACTS, "metric": 0.25}
    assert not (folder / "1" / MANIFEST).exists()
    assert json.loads((folder / "1" / METRIC).read_text()) == {"metric": 0.25}
    restore(folder)
    assert "cannot be verified" in caplog.text


def test_late_metric_leaves_the_facts_of_the_state_alone(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(make_state(1), {**FACTS, "is_validated": False})
        checkpoints.save(make_state(1), {**FACTS, "is_validated": True}, 0.25)
        assert checkpoints.meta(1) == {**FACTS, "is_validated": False, "metric": 0.25}


def test_arrays_spread_over_devices(tmp_path):
    mesh = make_mesh(4)
    state = make_state(5)
    spread = NamedSharding(mesh, PartitionSpec(None, "data"))
    shardings = jax.tree.map(lambda x: spread if x.ndim == 2 else replicated(mesh), state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(jax.device_put(state, shardings), FACTS)
    with Checkpoints(tmp_path / "c") as checkpoints:
        again = checkpoints.restore(jax.eval_shape(lambda: state), shardings)
        assert again.params["kernel"].sharding.is_equivalent_to(spread, 2)
        assert equal(again, state)
    assert equal(restore(tmp_path / "c"), state), "on one device as well"


ONE_OF_TWO = """
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path
from xec_jax.train import distributed
distributed.initialize()
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from test_checkpoint_faults import FACTS, flip, make_state
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.mesh import make_mesh, replicated

folder = Path(sys.argv[1])
mesh = make_mesh()
spread = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))
shardings = jax.tree.map(lambda x: spread if x.ndim == 2 else replicated(mesh), make_state())

def put(state):
    make = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: np.asarray(x)[i])
    return jax.tree.map(make, state, shardings)

with Checkpoints(folder) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(put(make_state(step)), FACTS, metric=1.0)
distributed.first_does(lambda: flip(folder / "3"))
with Checkpoints(folder) as checkpoints:
    state = checkpoints.restore(jax.eval_shape(make_state), shardings)
    for here, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(2)), strict=True):
        for shard in here.addressable_shards:
            assert np.array_equal(shard.data, np.asarray(wanted)[shard.index])
print("step", int(state.step), "of", len(jax.devices()), "devices")
"""


def test_two_processes_save_and_restore_the_same_steps(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", ONE_OF_TWO, str(tmp_path / "c"), *paths]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"XEC_JAX_COORDINATOR": coordinator, "XEC_JAX_PROCESSES": "2"}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, env=environment | {"XEC_JAX_PROCESS": k}, **pipes) for k in "01"
    ]
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert "step 2 of 4 devices" in out, err
        assert "checkpoint rejected, step 3" in err
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3.corrupt"]


def test_what_a_kill_left_is_removed_by_the_next_writer(tmp_path):
    save(tmp_path / "c", [1])
    left = [tmp_path / "c" / f"{name}.orbax-checkpoint-tmp" for name in ("2", "3")]
    for path in left:
        (path / "state").mkdir(parents=True)
    with Checkpoints(tmp_path / "c", read_only=True):
        assert all(path.exists() for path in left)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert not any(path.exists() for path in left)
        assert checkpoints.steps == [1]


SAVE_FOREVER = """
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_checkpoint_faults import FACTS, make_state
from xec_jax.train.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    for step in range(1, 1000):
        checkpoints.save(make_state(step, n=300_000), FACTS)  # 20 MB
        print(step, flush=True)
"""


def test_kill_in_the_midst_of_a_save(tmp_path):
    """F1: the newest visible step is whole, whenever the kill comes."""
    folder = tmp_path / "c"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", SAVE_FOREVER, str(folder), *paths]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for pause in (0.0, 0.03):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        for _ in range(2):
            process.stdout.readline()  # a further save has begun
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Checkpoints(folder) as checkpoints:
            steps = checkpoints.steps
        assert steps, "the first save was complete when the second one began"
        state = restore(folder, make_state(n=300_000))
        assert int(state.step) == steps[-1]
        assert equal(state, make_state(steps[-1], n=300_000))
        assert not list(folder.glob("*tmp*"))
        assert not list(folder.glob("*.corrupt"))


def noise(step, n):
    """A state of n MB that does not shrink by compression."""
    kernel = jax.random.normal(jax.random.PRNGKey(step), (8, n << 14))
    return make_state(step).replace(params={"kernel": kernel}, opt_state=(kernel, None))


@tolerant
@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_full_disk_costs_old_steps_then_the_save_never_the_newest(small_disk):
    folder = small_disk / "checkpoints"
    with Checkpoints(folder, keep_last=3, keep_best=1) as checkpoints:
        for step in range(1, 4):  # 1 MB each
            checkpoints.save(noise(step, 1), FACTS, metric=float(step))
        checkpoints.wait()
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 600_000))
        (folder / "2.orbax-checkpoint-tmp").mkdir()
        checkpoints.save(noise(4, 1), FACTS)
        checkpoints.wait()
        assert checkpoints.steps == [1, 3, 4], "step 2 made room; the best and the newest stay"
        assert not list(folder.glob("*tmp*"))
        (small_disk / "more").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 100_000))
        with pytest.raises(DiskError, match="no room for a checkpoint") as error:
            checkpoints.save(noise(5, 1), FACTS)
        assert error.value.exit_code == 4
        assert checkpoints.steps == [1, 3, 4], "none is given away in vain"
        filler.unlink()
        checkpoints.save(noise(6, 1), FACTS)
        checkpoints.wait()
        assert checkpoints.steps[-1] == 6
    assert equal(restore(folder, noise(6, 1)), noise(6, 1))


@tolerant
@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_disk_that_fills_up_during_a_save(small_disk, monkeypatch, caplog):
    """As with a quota, which nobody sees before: the thread of the save meets the error."""
    folder = small_disk / "checkpoints"
    monkeypatch.setattr(StepFolders, "_free", lambda self: 10**12)
    with Checkpoints(folder, keep_last=9) as checkpoints:
        checkpoints.save(noise(1, 1), FACTS)
        checkpoints.wait()
        checkpoints.save(noise(2, 4), FACTS)
        with pytest.raises(DiskError, match="cannot save a checkpoint"):
            checkpoints.wait()
        assert checkpoints.steps == [1]
        checkpoints.save(noise(3, 4), FACTS)
        checkpoints.save(noise(4, 1), FACTS)  # the failure of step 3 is logged, this one goes on
        checkpoints.wait()
        assert "a checkpoint is missed" in caplog.text
        assert checkpoints.steps == [1, 4]
        assert not list(folder.glob("*tmp*")), "the disk is not kept full"
        assert equal(
            checkpoints.restore(noise(4, 1), SingleDeviceSharding(jax.devices()[0])), noise(4, 1)
        )


def test_failure_of_the_manifest_makes_no_step(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path / "c") as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(StepFolders, "seal", no_space)
            checkpoints.save(make_state(1), FACTS)
            with pytest.raises(DiskError, match="No space left"):
                checkpoints.wait()
        assert checkpoints.steps == []
        checkpoints.save(make_state(1), FACTS)
        checkpoints.wait()
        assert checkpoints.steps == [1]


def test_no_room_is_said_before_writing(tmp_path, monkeypatch):
    save(tmp_path / "c", [1])
    with Checkpoints(tmp_path / "c") as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(StepFolders, "_free", lambda self: 0)
            with pytest.raises(DiskError, match="no room for a checkpoint"):
                checkpoints.save(make_state(2), FACTS)
        checkpoints.save(make_state(3), FACTS)
        checkpoints.wait()
        assert checkpoints.steps == [1, 3], "and the next one is tried"
