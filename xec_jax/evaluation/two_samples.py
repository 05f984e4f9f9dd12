"""How different two samples are, and how sure a number is that many events have made."""

from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """A ratio of sums with its error and an interval of 95 %."""

    value: float
    error: float
    low: float
    high: float


def bootstrap_ratio(
    above: np.ndarray, below: np.ndarray, event: np.ndarray, *, seed: int = 0, draws: int = 1000
) -> Ratio:
    """Ratio sum(above) / sum(below), with errors from drawing whole events anew.

    Args:
        above: (m,), one number per muon.
        below: (m,).
        event: (m,), whole numbers; muons of one event are drawn together.
        seed: Of the draws.
        draws: How many.

    Source:
        B. Efron and R. Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13.
    """
    _, index = np.unique(event, return_inverse=True)
    sums = np.stack([np.bincount(index, weights=values) for values in (above, below)], 1)
    rng = np.random.default_rng(seed)
    n, ratios = len(sums), []
    for _ in range(draws):
        a, b = sums[rng.integers(0, n, n)].sum(0)
        ratios.append(a / b)
    low, high = np.quantile(ratios, [0.025, 0.975])
    a, b = sums.sum(0)
    return Ratio(float(a / b), float(np.std(ratios)), float(low), float(high))


class TwoSamples(NamedTuple):
    """What a classifier makes of two samples.

    Attributes:
        accuracy: Share of held-out rows that it tells right; 0.5 if they cannot be told apart.
        error: Standard error of that, of the binomial law.
        auc: Area under its curve of true against false positives, 0.5 likewise.
    """

    accuracy: float
    error: float
    auc: float


def classifier_test(
    real: np.ndarray, drawn: np.ndarray, group: np.ndarray, *, seed: int = 0
) -> TwoSamples:
    """Trains boosted trees to tell real rows from drawn ones, and asks about rows held out.

    Args:
        real: (m k).
        drawn: (m k), for the same conditions.
        group: (m,), whole numbers; rows of one group are on one side of the split.
        seed: Of split and trees.

    Source:
        D. Lopez-Paz and M. Oquab 2017, arXiv:1610.06545.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    groups, index = np.unique(group, return_inverse=True)
    is_first = rng.permutation(len(groups))[index] < len(groups) / 2
    rows = np.concatenate([real, drawn])
    label = np.repeat([0, 1], [len(real), len(drawn)])
    side = np.concatenate([is_first, is_first])
    score = np.empty(len(rows))
    for held_out in (True, False):
        trees = HistGradientBoostingClassifier(max_iter=100, random_state=seed)
        with threadpool_limits(1):  # its threads wait by spinning, and stand in the way of JAX's
            trees.fit(rows[side != held_out], label[side != held_out])
            score[side == held_out] = trees.predict_proba(rows[side == held_out])[:, 1]
    accuracy = float(np.mean((score > 0.5) == label))
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(rows)))
    return TwoSamples(accuracy, error, float(roc_auc_score(label, score)))


def ks_distance(uniform: np.ndarray) -> float:
    """Largest distance of the distribution of numbers (m,) in [0, 1] from the uniform one."""
    from scipy.stats import kstest

    return float(kstest(uniform, "uniform").statistic) if len(uniform) else float("nan")
