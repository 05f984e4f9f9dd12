"""The study of plateaus: its defect is one that totals do not show and its tests of pairs do."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("distrax") is None:
    pytest.skip("needs the extra `flow`", allow_module_level=True)

from xec_jax.simulate import write_sample

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import plateau


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Events with right pairs, one full batch and a part of one, and the same with the defect."""
    right, wrong = (tmp_path_factory.mktemp("pairs") / name for name in ("right", "wrong"))
    write_sample("muon", right, plateau.BATCH + 100, parameters={"strength": 1.0})
    plateau.write_scrambled(right, wrong)
    return right, wrong


def test_the_defect_keeps_totals_and_loses_pairs(folders):
    right, wrong = map(plateau.read_folder, folders)
    np.testing.assert_array_equal(right.muons, wrong.muons)
    together = (np.column_stack([b.counts, b.primaries]) for b in (right, wrong))
    ours, theirs = (rows[np.lexsort(rows.T)] for rows in together)
    np.testing.assert_array_equal(ours, theirs)
    full = (b.take(np.arange(plateau.BATCH)) for b in (right, wrong))
    good, bad = plateau.pairing(right, right), plateau.pairing(*full)
    assert good["own primary"] == 1
    assert bad["own primary"] < 0.01
    assert good["R2 of ln r"] == pytest.approx(0.153, abs=0.02)
    assert bad["R2 of ln r"] < 0.005


def test_the_last_batch_is_not_full_and_keeps_its_pairs(folders):
    right, wrong = map(plateau.read_folder, folders)
    rest = np.arange(plateau.BATCH, plateau.BATCH + 100)
    assert plateau.pairing(right.take(rest), wrong.take(rest))["own primary"] == 1
