"""What a run says of events that could not be read, and of events that it sees twice."""

import json

import numpy as np
import toy
from ml_collections import ConfigDict

from xec_jax.data.arrays import ArraySource
from xec_jax.data.dead_source import DeadSource
from xec_jax.data.reweight import ReweightedSource, Weighting
from xec_jax.data.tfds.folder import shard_name
from xec_jax.train import job
from xec_jax.train.check import shared_files
from xec_jax.train.records import read_jsonl
from xec_jax.train.signals import StopFlag


class Lossy(ArraySource):
    """Events of files of which a part cannot be read."""

    def report(self):
        return {"skipped": 2, "bad_files": {"a.root": "is truncated"}}


def test_records_say_what_could_not_be_read_and_a_large_batch_warns(tmp_path, caplog):
    config, x = toy.config(epochs=2), np.ones((5, 3), np.float32)
    valid = {"valid": ArraySource({"x": x})}
    weighting = Weighting.of({"x": x}, {"x": (1, 1, 1)}, 10.0)
    source = ReweightedSource(DeadSource(Lossy({"x": x}), {None: np.zeros(4760, bool)}), weighting)
    job.run_job(toy.task(), config, source, valid, tmp_path / "run", stop=StopFlag())
    assert "a step takes 8 events, there are 5" in caplog.text
    bad = {"data/bad_events": 2, "data/bad_files": 1}
    for record in read_jsonl(tmp_path / "run" / "metrics.jsonl"):
        found = {name: n for name, n in record.items() if name.startswith("data/")}
        assert found == (bad if record["split"] == "train" else {})


def test_caches_that_training_and_validation_share_are_found(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        split = {"name": "events", "shardLengths": ["3"]}
        (tmp_path / name / "dataset_info.json").write_text(json.dumps({"splits": [split]}))
        facts = {"xec_jax_cache": 1, "columns": {}, "packing": {}}
        facts |= {"npho_branch": "npho", "time_branch": None}
        (tmp_path / name / "metadata.json").write_text(json.dumps(facts))
        (tmp_path / name / shard_name(0, 1)).touch()
    (tmp_path / "again").symlink_to(tmp_path / "b")
    data = {"source": "tfds", "train": (f"{tmp_path}/a", f"{tmp_path}/b")}
    found = shared_files(ConfigDict({**data, "valid": f"{tmp_path}/again"}))
    assert [path.parent.name for path in found] == ["b"]
    assert shared_files(ConfigDict({**data, "valid": None})) == []
