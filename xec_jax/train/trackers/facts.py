"""What trackers are told about a run, besides its metrics: read from the run folder."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xec_jax.config import flatten

SUFFIXES = (".png", ".pdf", ".csv", ".root", ".onnx")
OWN_FOLDERS = ("checkpoints", "tensorboard", "wandb")
SECRET = re.compile(r"(^|[._-])(token|key|secret|password)($|[._-])", re.IGNORECASE)
USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
LONGEST = 500
"""Characters of a value that every tracker takes."""


@dataclass(frozen=True)
class Facts:
    """A run, as trackers show it.

    Attributes:
        workdir: Run folder.
        experiment: Name of the group of runs.
        run_name: Name of the run.
        mlflow_uri: `log.mlflow_uri`.
        config: Resolved config without secrets.
        params: {dotted key: text} of the config, and the number of parameters if known.
        tags: {dotted key: text} of versions, commit, devices and data hashes.
    """

    workdir: Path
    experiment: str
    run_name: str
    mlflow_uri: str | None
    config: dict[str, Any]
    params: dict[str, str]
    tags: dict[str, str]


def read_facts(workdir: Path, n_parameters: int | None = None) -> Facts:
    """Reads `config.json` and `environment.json`."""
    raw = json.loads((workdir / "config.json").read_text())
    path = workdir / "environment.json"
    environment = json.loads(path.read_text()) if path.exists() else {}
    config = without_secrets(raw)
    params = {key: str(value)[:LONGEST] for key, value in flatten(config).items()}
    if n_parameters is not None:
        params["n_parameters"] = str(n_parameters)
    return Facts(
        workdir=workdir,
        experiment=raw["log"].get("experiment") or raw["task"],
        run_name=raw["log"].get("run_name") or workdir.resolve().name,
        mlflow_uri=raw["log"].get("mlflow_uri"),
        config=config,
        params=params,
        tags={
            key: str(value)[:LONGEST]
            for key, value in flatten(without_secrets(environment)).items()
        },
    )


def without_secrets(value: Any, key: str = "") -> Any:
    """Copies plain data, with stars for texts under secret keys and for names in URLs."""
    if isinstance(value, Mapping):
        return {name: without_secrets(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_secrets(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    return "***" if SECRET.search(key) else without_login(value)


def without_login(text: str) -> str:
    """Hides `user:password@` in URLs."""
    return USER_IN_URL.sub("***", text)


def artifacts(workdir: Path) -> Iterator[Path]:
    """Yields the files worth a copy, never checkpoints and never the config, which is redacted."""
    tops = sorted(path for path in workdir.iterdir() if path.name[0] != ".")
    for top in tops:
        if top.is_file() and top.name in ("environment.json", "metrics.jsonl"):
            yield top
        inside = sorted(top.rglob("*")) if top.is_dir() and top.name not in OWN_FOLDERS else [top]
        yield from (path for path in inside if path.is_file() and path.suffix in SUFFIXES)
