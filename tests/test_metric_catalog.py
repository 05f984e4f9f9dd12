"""Every number that tasks, loop and exact metrics report is defined, once."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xec_jax import config as configs
from xec_jax import metric_catalog, metric_definitions, metrics, targets
from xec_jax.errors import ConfigError
from xec_jax.geometry import FACES
from xec_jax.metric_channels import ChannelSums
from xec_jax.metric_definitions import ALIASES, CATALOG, QUANTITIES
from xec_jax.nets.faces import face_input
from xec_jax.nets.inpainter import Inpainter
from xec_jax.nets.regressor import Regressor
from xec_jax.tasks import hidden, mae
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.train import report, system
from xec_jax.train.trackers import names as tracker_names

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def pattern_of(name):
    """The only pattern that a name fits."""
    fitting = [d for d in CATALOG if metric_catalog._compiled(d.name).fullmatch(name)]
    assert len(fitting) == 1, (name, [d.name for d in fitting])
    return fitting[0]


def reported(task, params):
    """What a task reports, without computing anything."""
    batch = example_batch(task.spec, 2)
    names = []
    for function in (task.loss, task.evaluate):
        terms, found = jax.eval_shape(function, params, batch, jax.random.PRNGKey(0))
        names += [*(f"loss_{term}" for term in terms), *found]
    return task.derive({"loss": 1.0} | dict.fromkeys(names, 0.5))


@pytest.fixture
def without_networks(monkeypatch):
    """Metrics do not depend on what a network says: tracing it would only take time."""

    def faces(self, params, x, *_):
        return {face.name: face_input(face, x, **self.view) for face in self.detector.faces}

    def heads(self, *_, **__):
        return {name: jnp.zeros((2, width)) for name, width in self.heads.items()}

    monkeypatch.setattr(mae.Experiment, "reconstruct", faces)
    monkeypatch.setattr(Inpainter, "apply", lambda self, params, x, *_, **__: x)
    monkeypatch.setattr(Regressor, "apply", heads)


SIX = [f"train.tasks.{name}.enabled=true" for name in ("angleVec", "n_gamma")]
VARIANTS = {
    "mae": ["train.auto_channel_weight=true"],
    "mae split": ["model.outer_mode=split"],
    "inpaint": [],
    "regress": [
        *(*SIX, "train.tasks.n_gamma.branch=n_gamma"),
        *(f"train.tasks.{name}.loss_fn=gaussian_nll" for name in ("angle", "energy", "angleVec")),
        *(f"train.tasks.{name}.loss_fn=quantile" for name in ("timing", "uvwFI")),
    ],
    "regress balanced": ["train.loss_balance=auto"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_that_a_task_reports_is_defined(variant, without_networks):
    kind = variant.split()[0]
    overrides = [f"--config.{text}" for text in ("data.train=x", *VARIANTS[variant])]
    task = make_task(configs.load(f"configs/{kind}.py:tiny", overrides))
    params = {f"log_var_{name}": jnp.zeros(()) for name in QUANTITIES}
    found = reported(task, params | {mae.LOG_VARIANCES: jnp.zeros(2)})
    assert len(found) > 30
    for name in found:
        definition = metric_catalog.describe(name)
        assert definition.unit == task.units.get(name, ""), name
        assert not re.search(r"[{\[\]}]", definition.text + definition.unit), definition
        pattern_of(name)
    if kind == "regress":
        assert task.units.keys() <= found.keys()


def test_what_the_exact_metrics_report_is_defined():
    found = metrics.sensor_metrics([1.0], [1.0])
    names = [
        metrics_name
        for name in found
        for face in ("", *FACES)
        for method in ("", "disk", "local_fit")
        if (metrics_name := metric_catalog.flat_name(name, face=face, method=method))
    ]
    assert "mae_inner_photons_disk" in names
    assert "rel_res_68pct_error_outer_local_fit" in names
    for name in (*QUANTITIES, "n_gamma"):
        ones = np.ones((2, len(targets.QUANTITIES[name].components)))
        arrays = {f"{start}_{name}": ones for start in ("pred", "true")}
        arrays |= {f"pred_{name}_{end}": ones for end in ("sigma", "low", "high")}
        names += metrics.regression_metrics(arrays)
    for channel in ("npho", "time"):
        names += ChannelSums(channel, 65.0 if channel == "time" else None).metrics()
    for name in names:
        pattern_of(ALIASES.get(name, name))
        assert metric_catalog.describe(name).name == name


def test_what_the_loop_reports_is_defined():
    source = Path(report.__file__).read_text()
    keys = {a or b for a, b in re.findall(r'^ +"(\w+)": |record\["(\w+)"\]', source, re.MULTILINE)}
    assert {"lr", "epoch", "limited_by", "skipped_events"} <= keys
    stats = dict.fromkeys(("bytes_in_use", "pool_bytes", "bytes_limit", "peak_bytes_in_use"), 1)
    memory = system._of_device(stats)
    assert len(memory) == 5
    others = ("loss", "grad_norm", "skipped", "elapsed_s", "time", "ram_used_gb")
    shown = [row.key for row in tracker_names.TABLE]
    for name in (*keys, *memory, *shown, *others, "data/bad_events", "data/bad_files"):
        pattern_of(name)
        metric_catalog.describe(name)


def test_units_are_those_of_the_quantities():
    for name, (unit, parts) in QUANTITIES.items():
        assert (unit, parts) == (targets.QUANTITIES[name].unit, targets.QUANTITIES[name].components)
    assert metric_definitions.DIRECTIONS == targets.DIRECTIONS
    assert metric_definitions.N_CLASSES == targets.N_CLASSES
    for name, unit in {
        "theta_bias": "deg",
        "uvw_dist_68pct_error": "cm",
        "energy_res_68pct_mev": "MeV",
        "timing_res_68pct_error": "ns",
        "val_resolution_deg": "deg",
        "uvw_v_res_std": "cm",
        "energy_rel_res_68pct_error": "",
        "uvwFI_sigma_mean": "cm",
        "mae_outer_photons_ridge": "photons",
        "n_masked": "sensors",
    }.items():
        assert metric_catalog.unit_of(name) == unit, name
    assert hidden.UNITS["bright_rms_bot_photons_disk"] == "photons"
    assert hidden.UNITS["mae_time_ns"] == "ns"


def test_texts_are_about_the_name_that_was_asked_for():
    text = metric_catalog.describe("mae_inner_photons_disk").text
    assert text == "mean of abs(prediction - truth) over hidden sensors on inner, by disk"
    text = metric_catalog.describe("mae_photons").text
    assert text == "mean of abs(prediction - truth) over hidden sensors"
    assert metric_catalog.describe("val_cos").text.startswith("`angle_cos`: mean of 1 - cos")
    for wrong in ("theta_biass", "mae_side_photons", "mae_photons_", "loss_", ""):
        with pytest.raises(ConfigError, match="there is no metric"):
            metric_catalog.describe(wrong)


def test_the_page_is_up_to_date(tmp_path, capsys):
    page = PAGE.read_text()
    assert metric_catalog.renewed(page) == page, "python -m xec_jax.metric_catalog docs/metrics.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.replace("| photons |", "| p.e. |"))
    assert metric_catalog.main([str(copy)]) == 0
    assert copy.read_text() == page
    assert metric_catalog.main([]) == 0
    assert capsys.readouterr().out.strip() in page
    with pytest.raises(ConfigError, match="no place"):
        metric_catalog.renewed("# Metrics")


def test_nothing_wakes_up_jax():
    script = (
        "import sys, xec_jax.metrics, xec_jax.metric_catalog, xec_jax.metric_channels\n"
        "assert not {'jax', 'matplotlib', 'ml_collections'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
