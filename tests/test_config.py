"""Configs: variants, overrides, errors with the nearest key, JSON round trip, differences."""

import pytest
from ml_collections import ConfigDict

from xec_jax import config as configs
from xec_jax.errors import ConfigError

FILE = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config(variant="default"):
    if variant not in ("default", "tiny"):
        raise ValueError(f"no variant {variant}")
    groups = "data model optim train eval log export".split()
    c = ConfigDict({"task": "mae", "seed": 1, **{group: {} for group in groups}})
    c.model.pool = (3, 3)
    c.model.use_bias = True
    c.model.width = 8 if variant == "tiny" else 64
    c.optim.lr = 1e-3
    c.optim.ema = placeholder(float)
    c.data.train = ""
    return c
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(FILE)
    return str(path)


def test_variants_and_overrides(file):
    assert configs.load(file).model.width == 64
    overrides = ["optim.lr=3", "model.pool=(1,1)", "model.use_bias=false", "optim.ema=0.99"]
    overrides += ["data.train=/data/x=1/*.root"]
    config = configs.load(f"{file}:tiny", [f"--config.{text}" for text in overrides])
    assert config.model.to_dict() == {"pool": (1, 1), "use_bias": False, "width": 8}
    assert config.optim.to_dict() == {"lr": 3.0, "ema": 0.99}
    assert config.data.train == "/data/x=1/*.root"
    with pytest.raises((AttributeError, KeyError)):
        config.model.depth = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.lrr=1", "perhaps optim.lr"),
        ("--config.modle.width=1", "model.width"),
        ("--config.lr=1", "optim.lr"),
        ("--config.model.width=wide", "type int, like 64"),
        ("--config.model.width=2.5", "type int"),
        ("--config.model.use_bias=perhaps", "type bool"),
        ("--config.optim.lr=true", "type float"),
        ("--model.width=3", "--config.group.key=value"),
        ("--workdri", "--config.group.key=value"),
        ("--config.task=../evil", "xec_jax/tasks"),
    ],
)
def test_bad_overrides(file, override, message):
    with pytest.raises(ConfigError, match=message):
        configs.load(file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "AttributeError"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config(variant=''): return 3", "ConfigDict"),
        ("def get_config(variant=''): return 1 / 0", "ZeroDivisionError.*:1"),
        (FILE.replace("export", "exports"), "missing groups"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        configs.load(str(path))


def test_missing_file_and_variant(file):
    with pytest.raises(ConfigError, match="does not exist"):
        configs.load("configs/nothing.py")
    with pytest.raises(ConfigError, match="no variant huge"):
        configs.load(f"{file}:huge")


def test_json_round_trip_and_diff(file):
    config = configs.load(file)
    again = configs.from_json(configs.to_json(config))
    assert configs.diff(config, again) == {}
    assert again.model.pool == (3, 3)
    other = configs.load(file, ["--config.optim.lr=1", "--config.model.pool=(1,3)"])
    assert configs.diff(config, other) == {"model.pool": ([3, 3], [1, 3]), "optim.lr": (1e-3, 1.0)}


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_bad_json(text):
    with pytest.raises(ConfigError):
        configs.from_json(text)


def test_write_text_leaves_no_part_behind(tmp_path, monkeypatch):
    from xec_jax.errors import DiskError

    path = tmp_path / "a.json"
    configs.write_text(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        configs.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_flatten():
    assert configs.flatten(ConfigDict({"a": {"b": 1}, "c": 2})) == {"a.b": 1, "c": 2}
