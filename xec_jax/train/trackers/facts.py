"""What trackers are told about a run, besides its metrics: read from the run folder."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xec_jax.config import flatten
from xec_jax.redact import hidden, without_secrets

SUFFIXES = (".png", ".pdf", ".csv", ".root", ".onnx")
OWN_FOLDERS = ("checkpoints", "tensorboard", "wandb")
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
    environment.pop("earlier", None)  # the history of the run, no fact of it
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
            if value is not None
        },
    )


def reason(error: BaseException) -> str:
    """Returns an error in one line, without passwords."""
    text = " ".join(str(error).split())
    return hidden(f"{type(error).__name__}: {text}")[:300]


def artifacts(workdir: Path) -> Iterator[Path]:
    """Yields the files worth a copy, never checkpoints and never the config, which is redacted."""
    tops = sorted(path for path in workdir.iterdir() if path.name[0] != ".")
    for top in tops:
        if top.is_file() and top.name in ("environment.json", "metrics.jsonl"):
            yield top
        inside = sorted(top.rglob("*")) if top.is_dir() and top.name not in OWN_FOLDERS else [top]
        yield from (path for path in inside if path.is_file() and path.suffix in SUFFIXES)


def send_each(files: Mapping[str, Callable[[], object]]) -> None:
    """Sends files; one that fails keeps no other from being sent.

    Args:
        files: What sends each file, by its name.

    Raises:
        OSError: Some failed; it names them.
    """
    failed: dict[str, str] = {}
    for name, send in files.items():
        try:
            send()
        except Exception as error:
            failed[name] = reason(error)
    if failed:
        names, why = ", ".join(failed), next(iter(failed.values()))
        raise OSError(f"{len(failed)} of {len(files)} files were not sent: {names} ({why})")
