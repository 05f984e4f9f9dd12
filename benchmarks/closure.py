"""Does the simulated calorimeter give back what was put in, and how close is a fit to the bound?

`python benchmarks/closure.py --out docs/figures` makes closure.json, closure.txt and four figures
(sim_closure, sim_ratio, sim_pulls, sim_bounds); about four minutes on two cores.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import INVALID_ABOVE, SensorTable, design_positions
from xec_jax.kinematics import uvw_to_xyz
from xec_jax.plots.closure import bounds_figure, closure_figure, pulls_figure, ratio_figure
from xec_jax.plots.style import save
from xec_jax.sim import fisher, likelihood
from xec_jax.sim.lxe import simulate_events
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import SPEED_OF_LIGHT_CM_PER_NS, nominal_efficiency
from xec_jax.sim.lxe_source import sample_truth

DEFAULT = LxeParameters()
POINT = dataclasses.replace(DEFAULT, n_deposits=1, yield_spread=0.0, efficiency_spread=0.0)
PURE = dataclasses.replace(
    POINT, gain_spread=0.0, charge_spread=0.0, noise_phe=0.0, dead_fraction=0
)
UNCALIBRATED = dataclasses.replace(POINT, efficiency_spread=DEFAULT.efficiency_spread)
SAMPLES = {"counting": PURE, "point-like": POINT, "uncalibrated": UNCALIBRATED, "showers": DEFAULT}
"""Photon statistics alone; electronics and dead channels in addition; unknown efficiencies in
addition; everything."""
DRAWN = ("counting", "point-like")

SHALLOW_CM = 0.3
"""Above it the light falls on one or two sensors or between them: several maxima."""
DEPTHS_CM = (0.0, 0.3, 1.0, 2.0, 4.0, 8.0, 39.0)
REFERENCE_GEV = 0.0528

Arrays = dict[str, np.ndarray]


def simulate(
    params: LxeParameters, n: int, table: SensorTable, seed: int, **fixed: float
) -> Arrays:
    """Simulates n events; `fixed` replaces u, v, w (cm) or energy (GeV) of all of them."""
    key = jax.random.key(seed)
    truth = sample_truth(key, n, params)
    uvw = truth["uvwTruth"]
    for k, name in enumerate("uvw"):
        uvw = uvw.at[:, k].set(fixed[name]) if name in fixed else uvw
    place = uvw_to_xyz(uvw)
    direction = place - truth["xyzVTX"]
    truth |= {"uvwTruth": uvw, "xyzTruth": place}
    truth["emiVec"] = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    if "energy" in fixed:
        truth["energyTruth"] = jnp.full(n, fixed["energy"])
    parts = [
        simulate_events(key, {k: v[i : i + 50] for k, v in truth.items()}, table, params)
        for i in range(0, n, 50)
    ]
    events = {k: np.concatenate([part[k] for part in parts]) for k in ("npho", "time")}
    known = [truth["energyTruth"][:, None], uvw, truth["timeTruth"][:, None]]
    events["parameters"] = np.concatenate(known, 1)
    return events | {"vertex": np.asarray(truth["xyzVTX"])}


def light_and_centroid(params: LxeParameters, n: int, table: SensorTable, seed: int) -> Arrays:
    """Sum of light against energy, and charge centroid against u and v, at one depth."""
    at_rest = simulate(params, n, table, seed, u=0.0, v=0.0, w=5.0)
    charge = photoelectrons(at_rest, params)
    moving = simulate(params, n, table, seed + 1, w=5.0, energy=REFERENCE_GEV)
    squared = photoelectrons(moving, params)[:, :4092] ** 2
    place = likelihood.xyz_to_uvw(table.positions[:4092])[:, :2]
    return {
        "energy": at_rest["parameters"][:, 0],
        "light": charge.sum(1),
        "uv": moving["parameters"][:, 1:3],
        "centroid": np.asarray(squared @ place) / squared.sum(1, keepdims=True),
    }


def photoelectrons(events: Arrays, params: LxeParameters) -> np.ndarray:
    """Charges (n, s) in photoelectrons, 0 for dead channels."""
    return np.where(events["npho"] < INVALID_ABOVE, events["npho"], 0) * nominal_efficiency(params)


def timing(events: Arrays, params: LxeParameters, table: SensorTable) -> Arrays:
    """Flight-corrected arrival times against the path of the light, bin by bin."""
    x, place = events["parameters"], uvw_to_xyz(events["parameters"][:, 1:4])
    path = np.linalg.norm(place[:, None] - table.positions, axis=-1)
    flight = np.linalg.norm(place - events["vertex"], axis=-1)
    charge = photoelectrons(events, params)
    used = (events["time"] < INVALID_ABOVE) & (charge >= params.reference_threshold_phe)
    walk = params.time_walk_ns / np.sqrt(np.maximum(charge, 1))
    late = events["time"] * 1e9 - x[:, 4:] - flight[:, None] / SPEED_OF_LIGHT_CM_PER_NS - walk
    edges = np.arange(2.0, 62.0, 4.0)
    bins = [used & (path >= low) & (path < low + 4.0) for low in edges]
    weight = np.where(used, charge, 0.0)
    means = [np.average([path[b], late[b]], axis=1, weights=weight[b]) for b in bins]
    sigma = [params.time_resolution_ns / np.sqrt(weight[b].sum()) for b in bins]
    slope, slope_error = straight_line(path[used], late[used], weight[used])
    return {
        "path": np.array(means)[:, 0],
        "late": np.array(means)[:, 1],
        "sigma": np.array(sigma),
        "slope": np.array(slope),
        "slope_error": np.array(slope_error * params.time_resolution_ns),
    }


def straight_line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Slope of a weighted line, and its error for weights 1 / sigma^2."""
    x = x.astype(float) - np.average(x, weights=weight)
    spread = (weight * x * x).sum()
    return float((weight * x * y).sum() / spread), float(spread**-0.5)


def study(params: LxeParameters, n: int, table: SensorTable, seed: int) -> Arrays:
    """Fits n events and compares with the truth and the point-like bound."""
    events = simulate(params, n, table, seed)
    live = events["npho"] < INVALID_ABOVE
    fit = likelihood.fit(events["npho"], events["time"], table, params, events["vertex"])
    limit = fisher.bound(events["parameters"], table, params, events["vertex"], live)
    return events | {
        "residual": np.asarray(fit.estimate) - events["parameters"],
        "sigma": np.sqrt(np.diagonal(np.asarray(fit.covariance), axis1=1, axis2=2)),
        "bound": np.asarray(limit),
        "converged": np.asarray(fit.converged),
        "chi2": np.asarray(fit.chi2 / fit.freedom),
    }


def cloud_study(done: Arrays, n: int, showers: int, table: SensorTable, seed: int) -> Arrays:
    """What the best linear estimator should reach for the first n events, and its errors there."""
    keys = ("parameters", "vertex", "npho", "time")
    first = [jnp.asarray(done[key][:n]) for key in keys]
    params, key = DEFAULT, jax.random.key(seed)

    @jax.jit
    def one(event: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, vertex, npho, times = event
        seen = likelihood.measured(npho, times, params)
        at = fisher.cloud_moments(x, table, params, key, showers, vertex)
        weight = fisher.weights(at.response, params, seen.live)
        sigma = fisher.expected(x, table, params, vertex, seen.charge).sigma_ns
        by_time = jnp.where(seen.has_time, sigma**-2, 0.0)
        here = jnp.concatenate([weight[: len(by_time)], by_time])
        walk = params.time_walk_ns * (
            jnp.maximum(seen.charge, 1) ** -0.5 - jnp.maximum(at.response.counts, 1) ** -0.5
        )
        residual = jnp.concatenate([seen.charge, seen.time_ns - walk]) - fisher.stack(at.response)
        # The last column of the information is then J^T C^-1 (y - mean), the score.
        both = fisher.information(jnp.column_stack([at.slope, residual]), here, at.spread)
        matrix = fisher.information(at.slope, weight, at.spread)
        promised = jnp.sqrt(jnp.diagonal(fisher.invert(matrix)))
        return promised, fisher.invert(both[:5, :5]) @ both[:5, 5]

    promised, error = jax.lax.map(one, first)
    return {"promised": np.asarray(promised), "error": np.asarray(error)}


def curves(params: LxeParameters, table: SensorTable, showers: int = 0) -> Arrays:
    """Bounds by depth and by energy, averaged over places; of the linear estimator with showers."""
    rng = np.random.default_rng(0)
    places = rng.uniform([-20, -55], [20, 55], (3 if showers else 12, 2))
    depths = np.array([0.5, 1, 2, 4, 8, 13, 20, 33])
    energies = np.array([15, 20, 30, 40, 52.8, 83]) * 1e-3
    events = [(REFERENCE_GEV, *uv, w, 0) for w in depths for uv in places]
    events += [(e, *uv, 3.0, 0) for e in energies for uv in places]
    at = np.array(events, np.float32)
    if showers:
        key = jax.random.key(1)
        limit = np.asarray(fisher.linear_resolution(at, table, params, key, n_showers=showers))
    else:
        limit = np.asarray(fisher.bound(at, table, params))
    mean = np.sqrt((limit.reshape(-1, len(places), 5) ** 2).mean(1))
    cut = len(depths)
    return {"w": depths, "energy": energies, "by_w": mean[:cut], "by_energy": mean[cut:]}


def rms(values: np.ndarray) -> np.ndarray:
    """Root of the mean square over events."""
    return np.sqrt((values**2).mean(0))


def half_width(values: np.ndarray) -> np.ndarray:
    """Half the width that holds 68.27 % of the events around the median."""
    low, high = np.percentile(values, [15.865, 84.135], axis=0)
    return (high - low) / 2


def summarize(found: Arrays) -> dict:
    """Ratios and pulls of one study, per parameter, for converged events below SHALLOW_CM."""
    deep = found["parameters"][:, 3] >= SHALLOW_CM
    used = deep & found["converged"]
    ratio, own = found["residual"] / found["bound"], found["residual"] / found["sigma"]
    return {
        "events": len(deep),
        "deep_enough": int(deep.sum()),
        "converged": float(found["converged"][deep].mean()),
        "ratio": rms(ratio[used]),
        "ratio_error": 1 / np.sqrt(2 * used.sum()),
        "ratio_68": half_width(ratio[used]),
        "pull_mean": own[used].mean(0),
        "pull_width": own[used].std(0),
        "bias": found["residual"][used].mean(0),
        "resolution": rms(found["residual"][used]),
        "bound": rms(found["bound"][used]),
        "chi2_per_freedom": float(np.median(found["chi2"])),
    }


def by_depth(found: Arrays) -> dict:
    """Ratio of each parameter in bins of depth, converged events."""
    w, ratio = found["parameters"][:, 3], found["residual"] / found["bound"]
    rows = []
    for low, high in itertools.pairwise(DEPTHS_CM):
        inside = (w >= low) & (w < high)
        used = inside & found["converged"]
        if used.sum() < 10:
            continue
        share = float(found["converged"][inside].mean())
        rows.append({"w": (low, high), "n": int(inside.sum()), "converged": share})
        rows[-1] |= {"ratio": rms(ratio[used]), "ratio_68": half_width(ratio[used])}
    return {"depth_bins": rows}


def main() -> None:
    """Makes table and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("closure"))
    parser.add_argument("--events", type=int, default=4000, help="events per fitted sample")
    parser.add_argument("--cloud_events", type=int, default=100, help="treated as clouds")
    parser.add_argument("--showers", type=int, default=256, help="that make the cloud's covariance")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.perf_counter()
    design = design_positions()
    table = design._replace(
        positions=design.positions.astype(np.float32), normals=design.normals.astype(np.float32)
    )

    report: dict = {"options": {k: str(v) for k, v in vars(options).items()}}
    studies = {}
    for k, (name, params) in enumerate(SAMPLES.items()):
        studies[name] = study(params, options.events, table, options.seed + 10 * k)
        report[name] = summarize(studies[name]) | by_depth(studies[name])
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)

    light = {n: light_and_centroid(SAMPLES[n], 300, table, 7) for n in ("counting", "showers")}
    times = timing({k: v[:300] for k, v in studies["counting"].items()}, PURE, table)
    report["closure"] = closure_numbers(light, times, PURE)
    print(f"closure: {time.perf_counter() - start:.0f} s", flush=True)

    showers = studies["showers"]
    cloud = cloud_study(showers, options.cloud_events, options.showers, table, options.seed)
    report["clouds"] = summarize_cloud(showers, cloud)
    print(f"clouds: {time.perf_counter() - start:.0f} s", flush=True)
    lines = {name: curves(SAMPLES[name], table) for name in DRAWN}
    lines["cloud, linear"] = curves(DEFAULT, table, options.showers)
    print(f"curves: {time.perf_counter() - start:.0f} s", flush=True)

    report["seconds"] = time.perf_counter() - start
    write(options.out, report, studies, light, times, lines)
    print(table_of(report))


def write(
    out: Path,
    report: dict,
    studies: dict[str, Arrays],
    light: dict[str, Arrays],
    times: Arrays,
    lines: dict[str, Arrays],
) -> None:
    """Writes table and figures."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "closure.json").write_text(json.dumps(report, indent=1, default=rounded) + "\n")
    (out / "closure.txt").write_text(table_of(report))
    pulls = {k: (studies[k]["residual"] / studies[k]["sigma"])[usable(studies[k])] for k in DRAWN}
    figures = {
        "closure": closure_figure(light, times, PURE.refractive_index / SPEED_OF_LIGHT_CM_PER_NS),
        "ratio": ratio_figure({k: report[k] for k in DRAWN}, SHALLOW_CM),
        "pulls": pulls_figure(pulls),
        "bounds": bounds_figure(lines),
    }
    for name, figure in figures.items():
        save(figure, out / f"sim_{name}", formats=("png",))


def usable(found: Arrays) -> np.ndarray:
    """Events that count in the summary."""
    return found["converged"] & (found["parameters"][:, 3] >= SHALLOW_CM)


def summarize_cloud(found: Arrays, cloud: Arrays) -> dict:
    """How far the point-like fit is from the best linear estimator, bias taken off or not."""
    n = len(cloud["promised"])
    used = found["converged"][:n] & (found["parameters"][:n, 3] >= SHALLOW_CM)
    residual, promised = found["residual"][:n][used], cloud["promised"][used]
    return {
        "events": int(used.sum()),
        "linear": rms(promised),
        "linear_median": np.median(promised, 0),
        "fit_bias": np.median(residual, 0),
        "fit_resolution": half_width(residual),
        "fit_ratio": half_width((residual - np.median(residual, 0)) / promised),
        "linear_ratio": rms(cloud["error"][used] / promised),
        "linear_ratio_68": half_width(cloud["error"][used] / promised),
        "ratio_error": 1 / np.sqrt(2 * used.sum()),
    }


def closure_numbers(light: dict[str, Arrays], times: Arrays, params: LxeParameters) -> dict:
    """Slopes and what is left, of light, centroid and times."""
    numbers = {}
    for name, sample in light.items():
        one = np.ones(len(sample["energy"]))
        slope, offset = np.polyfit(sample["energy"], sample["light"], 1)
        left = sample["light"] / (slope * sample["energy"] + offset) - 1
        numbers[name] = {
            "phe_per_mev": slope / 1e3,
            "offset_mev": offset / slope * 1e3,
            "light_spread": float(left.std()),
            "centroid_slope_u": straight_line(sample["uv"][:, 0], sample["centroid"][:, 0], one)[0],
            "centroid_slope_v": straight_line(sample["uv"][:, 1], sample["centroid"][:, 1], one)[0],
            "centroid_rms_cm": rms(sample["centroid"] - sample["uv"]),
        }
    ideal = params.refractive_index / SPEED_OF_LIGHT_CM_PER_NS
    error = times["slope_error"] / ideal
    return numbers | {"time_slope_over_n_c": times["slope"] / ideal, "time_slope_error": error}


def table_of(report: dict) -> str:
    """The report as text, for reading."""
    head = " " * 30 + "".join(f"{n + ' [' + u + ']':>14}" for n, u in HEADS)
    lines = []

    def row(label: str, values: np.ndarray, form: str = "14.3f") -> None:
        lines.append(f"{label:30}" + "".join(f"{v:{form}}" for v in np.asarray(values)))

    for name in SAMPLES:
        r = report[name]
        lines += [f"{name}: {r['events']} events, {r['deep_enough']} with w >= {SHALLOW_CM} cm, "]
        lines[-1] += f"converged {r['converged']:.4f}, chi2/freedom {r['chi2_per_freedom']:.3f}"
        lines += [head]
        row("  point-like bound (rms)", r["bound"], "14.5f")
        row("  fit - truth (rms)", r["resolution"], "14.5f")
        row("  bias", r["bias"], "14.5f")
        row(f"  ratio +- {r['ratio_error']:.3f} (rms)", r["ratio"])
        row("  ratio (68 %)", r["ratio_68"])
        row("  pull, mean", r["pull_mean"])
        row("  pull, width", r["pull_width"])
        for b in r["depth_bins"] if name != "showers" else ():
            low, high = b["w"]
            width, form = ("ratio", "rms ") if low >= SHALLOW_CM else ("ratio_68", "68 %")
            row(f"  {form} {low:4} < w < {high:4} ({b['n']})", b[width])
        lines += [""]
    r = report["clouds"]
    lines += [f"clouds: {r['events']} showers and the best linear estimator", head]
    row("  best linear (rms)", r["linear"], "14.5f")
    row("  best linear (median)", r["linear_median"], "14.5f")
    row("  point-like fit, bias", r["fit_bias"], "14.5f")
    row("  point-like fit, 68 %", r["fit_resolution"], "14.5f")
    row("  fit / best linear (68 %)", r["fit_ratio"])
    row(f"  tried / best +- {r['ratio_error']:.3f} (rms)", r["linear_ratio"])
    row("  tried / best (68 %)", r["linear_ratio_68"])
    lines += ["", "closure: " + json.dumps(report["closure"], default=rounded, indent=1)]
    return "\n".join(lines) + "\n"


HEADS = tuple(zip(fisher.NAMES, fisher.UNITS, strict=True))


def rounded(value: object) -> object:
    """Arrays for JSON, five digits."""
    return np.vectorize(lambda v: float(f"{v:.5g}"), otypes=[float])(np.asarray(value)).tolist()


if __name__ == "__main__":
    main()
