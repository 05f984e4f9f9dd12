"""The evaluation at the end of a training: the same code, and never the end of a run."""

import json

import pytest
from evaluating import make_run, read, small_networks, write_events

from xec_jax.errors import DataError, Preempted
from xec_jax.evaluation import after_training, base
from xec_jax.evaluation.base import epoch_of
from xec_jax.evaluation.mae import MaeEvaluation
from xec_jax.train import __main__ as train
from xec_jax.train.saved import load_run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run that names its validation events, and those."""
    folder = tmp_path_factory.mktemp("run")
    data = write_events(folder / "valid.root", 20)
    with small_networks(folder / "programs"):
        words = (f"--config.data.valid={data}", "--config.eval.opponents=0")
        yield make_run(folder / "sensors", "mae", *words), data


def test_artifacts_of_the_validation_events(done, monkeypatch, capsys):
    run, _ = done
    drawn = []
    monkeypatch.setattr(base.Evaluation, "drawings", lambda self: drawn.append(self) or iter(()))
    monkeypatch.setattr(MaeEvaluation, "drawings", base.Evaluation.drawings)
    after_training.report_run(run, load_run(run).config, lambda: False)
    assert len(drawn) == 1
    found = json.loads((run / "evaluation/valid/metrics.json").read_text())
    assert found["facts"]["input"].endswith("the validation events")
    arrays, _ = read(run / "evaluation/valid/mae_predictions_epoch_0.root", "tree")
    assert len(arrays["event_id"]) == 20
    assert (run / "evaluation/valid/report.html").exists()
    assert "evaluating step 0 on 20 events" in capsys.readouterr().out


def test_told_to_stop(done, tmp_path, monkeypatch):
    run, _ = done
    with pytest.raises(Preempted, match="told to stop"):
        after_training.report_run(run, load_run(run).config, lambda: True)


@pytest.mark.parametrize("error", [DataError("no such file"), KeyError("a slip of ours")])
def test_what_fails_ends_no_training(error, done, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(after_training.outcome, "evaluate", fail)
    after_training.report_run(done[0], load_run(done[0]).config, lambda: False)
    assert "the run is complete, its evaluation is not" in caplog.text


def test_when_a_training_evaluates(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(after_training, "report_run", lambda *args: called.append(args))
    train.evaluate(None, tmp_path, [], is_new=True)
    assert len(called) == 1
    train.evaluate(None, tmp_path, [], is_new=False)
    assert len(called) == 2, "it was not done before"
    (tmp_path / "evaluation/valid").mkdir(parents=True)
    (tmp_path / "evaluation/valid/report.html").touch()
    train.evaluate(None, tmp_path, [], is_new=False)
    assert len(called) == 2
    monkeypatch.setattr("xec_jax.train.distributed.count", lambda: 2)
    train.evaluate(None, tmp_path, [], is_new=True)
    assert len(called) == 2
    assert "python -m xec_jax.evaluate" in capsys.readouterr().out


def test_epochs_are_read_from_the_record(tmp_path):
    lines = [{"step": 8, "split": "train", "epoch": 2.0}, {"step": 8, "split": "valid"}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert epoch_of(tmp_path, 8) == 2
    assert epoch_of(tmp_path, 4) == 0
    assert epoch_of(tmp_path / "no", 4) == 0
