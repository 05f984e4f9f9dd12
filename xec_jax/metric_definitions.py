"""Every number that a training or an evaluation reports: unit and definition, once.

A name is a pattern. `{face}` and the like stand for one of several words (`WORDS`); a part in
brackets may be missing, in the name and in the text alike. Nothing is computed here;
`metric_catalog` looks names up.

Source: metrics of the PyTorch predecessor, under its names or with its names in `ALIASES`.
"""

from dataclasses import dataclass

from xec_jax.geometry import FACES

QUANTITIES = {
    "angle": ("deg", ("theta", "phi")),
    "energy": ("GeV", ("energy",)),
    "timing": ("ns", ("timing",)),
    "uvwFI": ("cm", ("uvw_u", "uvw_v", "uvw_w")),
    "angleVec": ("", ("vec_x", "vec_y", "vec_z")),
}
"""What is regressed: its unit, and the names of its numbers."""

SMALLER = {"energy": ("MeV", 1e3), "timing": ("ps", 1e3)}
"""Errors that people quote in another unit than that of the truth."""

DIRECTIONS = ("angle", "angleVec")
"""Quantities for which there is an angle between prediction and truth."""

ERRORS = ("bias", "rms", "res_68pct")
"""What is said of every component in its unit."""

N_CLASSES = 5
"""Of `n_gamma`."""

CONDITIONS = ("log_energy", "cos_zenith", "log_mass", "depth")
"""Of a muon bundle."""

WORDS = {
    "condition": CONDITIONS,
    "quantity": tuple(QUANTITIES),
    "target": (*QUANTITIES, "n_gamma"),
    "component": tuple(part for _, parts in QUANTITIES.values() for part in parts),
    "direction": DIRECTIONS,
    "error": ERRORS,
    "percentile": (
        *(f"{part}_res_68pct" for _, parts in QUANTITIES.values() for part in parts),
        *(f"{name}_resolution_68pct" for name in DIRECTIONS),
        *("energy_rel_res_68pct", "uvw_dist_68pct"),
    ),
    "face": (*FACES, "outer_coarse", "outer_center"),
    "channel": ("npho", "time"),
    "method": ("neighbors", "disk", "solid_angle", "local_fit", "ridge"),
}
"""What stands in the braces of names."""

ALIASES = {
    **dict.fromkeys(("total_loss", "train_loss", "val_loss"), "loss"),
    **{f"val_{name}": name for name in ("smooth_l1", "l1", "mse")},
    "val_resolution_deg": "angle_resolution_68pct",
    "val_cos": "angle_cos",
    "energy_calibration_ratio": "energy_pull_rms",
    "energy_pred_std_mean": "energy_sigma_mean",
    **{f"uvw_{axis}_res_std": f"uvw_{axis}_rms" for axis in "uvw"},
}
"""The predecessor's name -> ours, where they differ."""


@dataclass(frozen=True)
class Definition:
    """What a metric is.

    Attributes:
        name: Its name, or in `CATALOG` a pattern of names.
        unit: Empty for numbers without one; in `CATALOG` it may be that of a word.
        text: Formula and what it is taken over.
        group: The heading under which it stands in the documentation.
    """

    name: str
    unit: str
    text: str
    group: str


def _group(group: str, *rows: tuple[str, str, str]) -> tuple[Definition, ...]:
    return tuple(Definition(*row, group) for row in rows)


_BRIGHT = "hidden sensors with 100 photons or more[, on {face}][, by {method}]"

CATALOG = (
    *_group(
        "Training",
        ("loss", "", "objective: the sum of its terms, each a sum over all events divided once"),
        ("grad_norm", "", "length of the gradient before clipping"),
        ("lr", "", "learning rate of the last step"),
        (
            "skipped",
            "",
            "share of steps whose loss or gradient was not finite; they change nothing",
        ),
        ("skipped_steps", "", "numbers of the steps that were skipped"),
        (
            "skipped_events",
            "",
            "first and last `run` and `event` in the batch of each skipped step",
        ),
        ("step", "steps", "completed steps"),
        ("epoch", "", "completed passes over the training events"),
        ("split", "", "what the record is about: `train`, or the name of a validation set"),
        ("elapsed_s", "s", "time since the start of the process"),
        ("time", "s", "time of day, since 1970"),
        ("data/bad_events", "events", "entries that could not be read in the epoch"),
        ("data/bad_files", "files", "files that were left out in the epoch"),
    ),
    *_group(
        "Machine",
        ("events_per_s", "1/s", "events per second between two points where the host waited"),
        ("data_wait", "", "share of the time of the steps in which the loop waited for data"),
        ("compute_share", "", "1 - `data_wait`"),
        ("data_wait_s", "s", "wait for a batch, mean over steps"),
        ("epoch_s", "s", "duration of the epoch"),
        ("limited_by", "", "what the epoch waited for: `compute`, `reading` or `copying`"),
        ("ram_used_gb", "GB", "memory of the process on the host; 1 GB is 1e9 bytes"),
        ("memory_allocated_gb", "GB", "device memory in use, of several devices the largest"),
        ("memory_reserved_gb", "GB", "pool that was taken from the device"),
        ("memory_peak_gb", "GB", "most device memory that was ever in use"),
        ("memory_fragmentation", "", "1 - allocated / reserved"),
        ("gpu_utilization_pct", "%", "device memory in use over what JAX may take; not the load"),
    ),
    *_group(
        "Regression",
        ("loss_{target}", "", "loss term: weight x mean over known events and components"),
        ("no_truth_{target}", "", "share of events whose truth is not known"),
        ("log_var_{target}", "", "s of the learned balance exp(-s) L / 2 + s / 2"),
        ("learned_weight_{target}", "", "exp(-s) / 2, the factor of the loss"),
        (
            "n_{target}",
            "events",
            "events with a known truth and a finite prediction: those that count",
        ),
        (
            "n_{target}_left_out",
            "events",
            "events without a known truth or without a finite prediction",
        ),
        (
            "{component}_bias",
            "{component}",
            "mean of r = prediction - truth, phi without whole turns",
        ),
        (
            "{component}_rms",
            "{component}",
            "standard deviation of prediction - truth about its mean",
        ),
        (
            "{component}_skew",
            "",
            "m3 / m2^1.5 of prediction - truth, m central moments; 0 if all are equal",
        ),
        (
            "{component}_skill",
            "",
            "1 - mean square of prediction - truth / variance of the truth: 0 for predicting the "
            "mean, 1 for perfect; "
            "of times relative to the zero of the inputs",
        ),
        ("{component}_res_68pct", "{component}", "68th percentile of abs(prediction - truth)"),
        ("energy_{error}_mev", "MeV", "`energy_{error}` in MeV"),
        ("timing_{error}_ps", "ps", "`timing_{error}` in ps"),
        ("energy_rel_res_68pct", "", "68th percentile of abs(prediction - truth) / truth"),
        (
            "{direction}_resolution_68pct",
            "deg",
            "68th percentile of the opening angle between prediction p and truth t, "
            "atan2(abs(p x t), p t)",
        ),
        ("{direction}_cos", "", "mean of 1 - cosine of the opening angle"),
        ("uvw_dist_mean", "cm", "mean of the distance between prediction and truth"),
        ("uvw_dist_68pct", "cm", "68th percentile of the distance between prediction and truth"),
        (
            "{percentile}_error",
            "{percentile}",
            "standard error of `{percentile}`: half the distance of the order statistics one "
            "binomial standard deviation below and above it",
        ),
        ("{quantity}_sigma_mean", "{quantity}", "mean of the error that `gaussian_nll` claims"),
        (
            "{quantity}_pull_rms",
            "",
            "root of the mean of ((prediction - truth) / claimed error)^2: 1 is honest",
        ),
        ("{quantity}_coverage", "", "share of the truth between the outermost quantiles"),
        ("n_gamma_accuracy", "", "share of events whose class is the most probable one"),
        (
            "smooth_l1",
            "",
            "smooth L1 (beta 1) in deg, GeV, ns, cm: mean over components, summed over quantities",
        ),
        ("l1", "", "abs(prediction - truth) in deg, GeV, ns, cm, summed like `smooth_l1`"),
        ("mse", "", "(prediction - truth)^2 in deg, GeV, ns, cm, summed like `smooth_l1`"),
        ("cos", "", "`angle_cos` and `angleVec_cos`, summed if both are learned"),
    ),
    *_group(
        "Reconstruction of hidden sensors",
        ("loss_{face}_{channel}", "", "loss term of {channel} on {face}, in normalized units"),
        ("loss_{face}", "", "sum of the loss terms on {face}"),
        ("loss_{channel}", "", "sum of the loss terms of {channel}, or its only one"),
        ("loss_balance[_{channel}]", "", "s / 2[ of {channel}] of the learned balance"),
        ("channel_logvar_{channel}", "", "s of the learned balance exp(-s) L / 2 + s / 2"),
        ("actual_mask_ratio", "", "hidden sensors over those that may be hidden"),
        ("time_valid_ratio", "", "hidden sensors that are valid and bright enough for a time"),
        ("n_masked", "sensors", "hidden sensors per event"),
        (
            "mae_[{face}_]{channel}",
            "",
            "mean of abs(prediction - truth), normalized, over hidden sensors[ on {face}]; times "
            "only of sensors that are bright enough",
        ),
        (
            "rmse_[{face}_]{channel}",
            "",
            "root of the mean of (prediction - truth)^2, over the sensors of "
            "`mae_[{face}_]{channel}`",
        ),
        (
            "r2_[{face}_]{channel}",
            "",
            "1 - mean of (prediction - truth)^2 / variance of the truth, over the same sensors",
        ),
        ("mae_time_ns", "ns", "`mae_time` in ns"),
        (
            "mae_[{face}_]photons[_{method}]",
            "photons",
            "mean of abs(prediction - truth) over hidden sensors[ on {face}][, by {method}]",
        ),
    ),
    *_group(
        "Muon bundles",
        ("nll", "nats", "mean over muons of -ln p(muon | primary), in units of stage A"),
        ("nll_event", "nats", "`nll` with muons weighted by 1 / N: events count alike"),
        ("nll_twin", "nats", "`nll` of the flow whose context is a constant"),
        ("loss_flow", "nats", "loss term: `nll`, or `nll_event` for train.weighting=event"),
        ("loss_twin", "nats", "loss term: that of the twin"),
        ("loss_multiplicity", "", "loss term: weight x negative log probability or squared error"),
        (
            "information",
            "nats",
            "`nll_twin` - `nll`: what the flow makes of the primary; about 0 if nothing",
        ),
        (
            "delta_perm[_{condition}]",
            "nats",
            "rise of `nll` where each muon gets the primary[, of it {condition} alone,] of another",
        ),
        (
            "residual_r2",
            "",
            "R^2 of the best quadratic of the conditions for a feature's noise or its square, the "
            "largest: what of the primary was left unused",
        ),
        (
            "context_spread",
            "",
            "standard deviation over rows of an embedded context, mean of units",
        ),
        (
            "context_std_pooled",
            "",
            "root mean square about the mean of rows and units; not 0 for a constant context",
        ),
        ("outside", "", "share of muons with a feature where the splines do nothing"),
        (
            "round_trip_rms",
            "",
            "root mean square of a muon's largest error on the way to noise and back",
        ),
        ("round_trip_failed", "", "share of muons for which that error is above 1e-4"),
        ("round_trip_max", "", "largest error of a feature of a muon on that way"),
        (
            "c2st",
            "",
            "share of held-out muons that boosted trees tell right as measured or drawn, given the "
            "conditions; 0.5 if they cannot",
        ),
        ("c2st_error", "", "standard error of `c2st`"),
        ("c2st_auc", "", "area under the trees' curve of true against false positives"),
        ("pit_ks", "", "largest distance of the noise's distribution from its base, over features"),
        ("nll_oracle", "nats", "`nll` of the true density of a benchmark, on the same muons"),
        ("nll_marginal", "nats", "`nll` of the true density with the primary integrated out"),
        ("excess", "nats", "`nll` - `nll_oracle` (of muons or events, as in the training)"),
        ("excess_error", "nats", "standard error of `excess`, by drawing events anew"),
        ("eta", "", "(`nll_marginal` - `nll`) / (`nll_marginal` - `nll_oracle`): 1 is perfect"),
        ("eta_error", "", "standard error of `eta`, by drawing events anew"),
        ("eta_low", "", "lower end of the 95 % interval of `eta`"),
        ("eta_high", "", "upper end of the 95 % interval of `eta`"),
        ("twin_excess", "nats", "`nll_twin` - `nll_marginal`: what the twin has still to learn"),
        ("nll_multiplicity_oracle", "nats", "`nll_multiplicity` of the true law of a benchmark"),
        ("multiplicity_predicted", "", "mean of the predicted ln(N + 1)"),
        ("multiplicity_predicted_std", "", "standard deviation of the predicted ln(N + 1)"),
        ("multiplicity_target", "", "mean of ln(N + 1)"),
        ("multiplicity_target_std", "", "standard deviation of ln(N + 1)"),
        ("multiplicity_mse", "", "mean square error of ln(N + 1)"),
        ("multiplicity_r2", "", "1 - `multiplicity_mse` / variance of ln(N + 1)"),
        ("nll_multiplicity", "nats", "mean over events of -ln P(N | primary)"),
    ),
    *_group(
        "Comparison of methods",
        *(
            (f"{start}_[{{face}}_]photons[_{{method}}]", "photons", f"{text} over {_BRIGHT}")
            for start, text in (
                ("bright_mae", "mean of abs(prediction - truth)"),
                ("bright_rms", "root of the mean of (prediction - truth)^2"),
                ("bright_bias", "mean of prediction - truth"),
            )
        ),
        *(
            (f"{start}[_{{face}}][_{{method}}]", "", f"{text} over {_BRIGHT}")
            for start, text in (
                ("rel_mae", "mean of abs(prediction - truth) / truth"),
                ("rel_rms", "root of the mean of ((prediction - truth) / truth)^2"),
                ("rel_res_68pct", "68th percentile of abs(prediction - truth) / truth"),
                ("rel_res_68pct_error", "standard error of `rel_res_68pct`"),
            )
        ),
        ("n_bright[_{face}][_{method}]", "sensors", f"number of {_BRIGHT}"),
        (
            "n_masked_total[_{face}][_{method}]",
            "sensors",
            "hidden sensors with a known truth in all events[, on {face}]",
        ),
        (
            "failed[_{face}][_{method}]",
            "",
            "share of `n_masked_total` without a finite prediction, which all others leave out",
        ),
        ("lonely_{method}", "", "share of hidden sensors for which {method} had no live neighbor"),
    ),
)
"""In the order of the documentation; a name fits one pattern at most."""
