"""Run folders as training leaves them, and what a listing says of them."""

import json

import toy

from xec_jax import config as configs
from xec_jax import runs as command

COMMAND = ["python", "-m", "xec_jax.train"]


def make_run(folder, *, state="done", losses=(3.0, 2.0), train=4, commit="a" * 40, **keys):
    """A run folder as training leaves it; `keys` are config keys with __ for the dot."""
    folder.mkdir(parents=True)
    config = toy.config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    (folder / "config.json").write_text(configs.to_json(config))
    environment = {
        "git": commit,
        "record": {"events": {"train": "feed" * 4, "valid": "beef" * 4}},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = []
    for epoch, loss in enumerate(losses, start=1):
        for step in range((epoch - 1) * train + 1, epoch * train + 1):
            place = {"step": step, "split": "train", "epoch": step / train}
            lines.append({**place, "loss": 9.0, "lr": 0.1, "events_per_s": 100.0 + step})
        place = {"step": epoch * train, "split": "valid", "epoch": float(epoch)}
        lines.append({**place, "loss": loss, "accuracy": loss and 1 - loss})
        lines.append({**place, "split": "other", "loss": -5.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state:
        ended = {"state": state, "started": "2026-03-01T10:00:00+00:00", "hours": 1.5}
        facts = {"attempts": 2, "note": "", "command": COMMAND, "job": "77"}
        (folder / "status.json").write_text(json.dumps({**ended, **facts}))
    return folder


def rows_of(*arguments, capsys):
    """What a listing says, by the names of the runs."""
    assert command.main(["list", *map(str, arguments), "--format", "json"]) == 0
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}
