"""The house rules that a reader would otherwise have to trust."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xec_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "types": 0,
    "errors": 0,
    "redact": 0,
    "outputs": 0.5,
    "config": 1.0,
    "defaults": 1.05,
    "yaml_tables": 1.055,
    "yaml_configs": 1.06,
    "geometry": 1.1,
    "kinematics": 1.2,
    "transforms": 1.3,
    "muon_features": 1.35,
    "losses": 1.4,
    "targets": 1.45,
    "torch_configs": 1.46,
    "metric_definitions": 1.465,
    "metric_catalog": 1.47,
    "metrics": 1.48,
    **dict.fromkeys(["metric_channels", "metric_sums", "muon_sums"], 1.5),
    **dict.fromkeys(["nets", "data", "sim"], 2),
    "baselines": 2.5,  # use solid angles and the likelihood of sim
    "plots": 2,  # figures from arrays: knows the geometry, nothing above
    "tasks": 3,
    "torch_weights": 3.5,
    "train": 4,
    "trained": 4.2,
    "evaluation": 5.1,
    **dict.fromkeys(["snpe", "export", "convert", "simulate"], 5),
    "inference": 5.2,
    "predict": 5.3,
    "quantize": 5.3,
    "evaluate": 5.5,
    "display": 5,
    "search": 5,
    "check_report": 4.5,
    "check": 5,
    "sweep": 5.5,
    "registry": 5,
    "runs": 5.5,
}
HEAVY = {  # module -> the only files that may import it at all
    "distrax": {"nets/flows.py", "nets/flow_bases.py", "nets/splines.py", "nets/cvae.py"},
    "jraph": {"nets/hexgraph.py"},
    "tensorflow": {"export/jax2tf_backend.py"},
    "tensorflow_datasets": {"data/tfds/builder.py"},
    "array_record": {"data/tfds/source.py", "data/tfds/builder.py"},
    "orbax": {"train/checkpoint.py"},
    "uproot": {"data/root/file.py", "data/root/writer.py"},
    "onnxruntime": {"export/model.py", "export/verify.py", "export/precision.py"},
    "torch": {"convert.py"},
    "yaml": {"yaml_configs.py"},
    "optuna": {"search/study.py"},
    "mlflow": {"train/trackers/mlflow_writer.py"},
    "tensorboard": {"train/trackers/tensorboard_writer.py"},
    "wandb": {"train/trackers/wandb_writer.py"},
}
FORBIDDEN = {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}


def room(path: Path) -> str:
    """The level name of a file: its folder, or its own name at the top."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    here = room(path)
    if path.name == "__main__.py" or here == "__init__":
        return
    for name in imports(path):
        if not name.startswith("xec_jax."):
            continue
        there = name.split(".")[1]
        if there == "__version__" or there == here:
            continue
        if (here, there) == ("train", "plots") or (here, there) == ("tasks", "plots"):
            continue  # figures are drawn late, inside functions
        assert LEVELS[there] < LEVELS[here], f"{here} must not import {name}"


def test_rooms_have_no_circles():
    """Within a room, too: following imports never leads back."""
    names = {".".join(("xec_jax", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in FILES}
    graph = {name: imports(path, top_only=True) & names.keys() for name, path in names.items()}
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("room_name", ["train", "tasks"])
def test_figures_are_drawn_late(room_name):
    for path in (PACKAGE / room_name).glob("*.py"):
        assert not {n for n in imports(path, top_only=True) if n.startswith("xec_jax.plots")}


def test_train_names_no_task():
    for path in (PACKAGE / "train").glob("*.py"):
        tasks = {n for n in imports(path) if n.startswith("xec_jax.tasks.")}
        assert all(n.startswith("xec_jax.tasks.base") for n in tasks), path.name
        assert "mae" not in path.read_text().replace("configs/mae.py", ""), path.name


def test_nets_see_no_config_and_data_no_jax_array():
    for path in (PACKAGE / "nets").rglob("*.py"):
        assert not {n for n in imports(path) if n.startswith(("ml_collections", "xec_jax.config"))}
    for path in (PACKAGE / "data").rglob("*.py"):
        if path.name != "prefetch.py":
            assert not {n for n in imports(path) if n.split(".")[0] == "jax"}, path.name


@pytest.mark.parametrize("module", sorted(HEAVY))
def test_heavy_packages_have_one_door(module):
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == module for name in imports(path))
    }
    assert users <= HEAVY[module]


def test_figures_are_imported_late():
    for path in FILES:
        names = {name.split(".")[0] for name in imports(path, top_only=True)}
        assert "matplotlib" not in names, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_that_runs_foreign_code(path):
    assert not {n.split(".")[0] for n in imports(path)} & FORBIDDEN
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile"), node.lineno
        if isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


def test_every_public_name_is_documented():
    missing = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
            is_public = is_definition and not node.name.startswith("_")
            if is_public and not ast.get_docstring(node):
                missing.append(f"{path.name}:{node.name}")
    assert not missing


def test_files_stay_readable():
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 150
    assert lengths[-1] <= 500
    assert len((PACKAGE / "train" / "loop.py").read_text().splitlines()) <= 250


@pytest.mark.parametrize(
    "command",
    [
        *("train", "simulate", "predict", "evaluate", "display", "convert", "sweep", "runs"),
        *("check", "data.build"),
    ],
)
def test_help_does_not_pay_for_jax(command):
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('xec_jax.{command}', run_name='__main__')\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "heavy = {'jax', 'numpy', 'flax', 'uproot', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exit codes" in done.stdout
