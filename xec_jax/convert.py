"""`python -m xec_jax.convert`: checkpoints and YAML files of the PyTorch predecessor."""

import argparse
import hashlib
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xec_jax.errors import EXIT_CODES, CheckpointError, ConfigError, run_command

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

EXAMPLES = """examples:
  convert --checkpoint artifacts/run/checkpoint_best.pth --output runs/old
  convert --checkpoint F.pth --yaml train_config.yaml --output runs/old
  convert --checkpoint F.pth --output runs/old --config.model.outer_fine_pool='(3,3)'
  convert --yaml train_config.yaml            prints the command that trains the same here

The folder that is written is an ordinary run: predict it, or start from it with
--config.train.init_from=runs/old. Where a checkpoint does not say how it was trained, give the YAML
file, or the values themselves as --config.group.key=value.
"""


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.convert",
        description="Turns weights and configs of the PyTorch predecessor into runs and configs.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", type=Path, metavar="F.pth")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder to write")
    parser.add_argument("--yaml", type=Path, metavar="FILE", help="config file of that training")
    kinds = ("auto", "mae", "regressor", "inpainter", "encoder")
    parser.add_argument("--kind", choices=kinds, default="auto")
    parser.add_argument("--no_ema", action="store_true", help="not the moving average")
    parser.add_argument(
        "--config", metavar="FILE.py", help="config to fill in (default: configs/KIND.py)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options, overrides = parser().parse_known_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax explains itself at length
    if options.checkpoint is None:
        return print_config(options, overrides)
    if options.output is None:
        raise ConfigError("no --output", expected="the run folder to write")
    if options.output.is_dir() and any(options.output.iterdir()):
        found = f"{options.output} is not empty"
        raise ConfigError(found, expected="a new or empty folder for the run")
    return convert(options, overrides)


def print_config(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the command that trains here what a YAML file trained there."""
    from xec_jax import config as configs
    from xec_jax import yaml_configs

    if options.yaml is None:
        raise ConfigError("nothing to convert", expected="--checkpoint F.pth or --yaml FILE")
    settings = yaml_configs.read(options.yaml)
    kind = yaml_configs.program_of(settings) if options.kind == "auto" else options.kind
    if kind not in yaml_configs.KINDS:
        raise ConfigError(f"--kind {kind} has no YAML file", expected="one that is trained")
    translation = yaml_configs.translate(settings, kind, str(options.yaml))
    file = options.config or f"configs/{yaml_configs.KINDS[kind]}.py"
    default = configs.flatten(configs.load(file))
    final = configs.load(file, yaml_configs.arguments(translation.overrides))
    final = configs.flatten(final)
    changed = {k: v for k, v in translation.overrides.items() if final.get(k, v) != default[k]}
    folder = Path(settings.get("checkpoint.save_dir") or "runs")
    workdir = folder / str(settings.get("mlflow.run_name") or options.yaml.stem)
    print(f"# {options.yaml}: {kind}; what is not listed is as in {file}")
    command = [f"python -m xec_jax.train --config {file} --workdir {shlex.quote(str(workdir))}"]
    command += [shlex.quote(text) for text in (*yaml_configs.arguments(changed), *overrides)]
    print(" \\\n    ".join(command))
    print(translation.doubts())
    return 0


def convert(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Writes a checkpoint as a run; everything is checked before anything is written."""
    checkpoint = read_checkpoint(options.checkpoint, ema=not options.no_ema)
    from xec_jax import config as configs
    from xec_jax import torch_configs, yaml_configs
    from xec_jax.tasks.base import make_task
    from xec_jax.torch_weights import from_torch, unused
    from xec_jax.train.saved import write_run

    tensors = checkpoint.tensors
    kind = torch_configs.kind_of(tensors) if options.kind == "auto" else options.kind
    # A bare encoder comes from a pretraining; its run has no decoders.
    program = "mae" if kind == "encoder" else kind
    is_later = torch_configs.is_later(kind, tensors)
    settings = yaml_configs.read(options.yaml) if options.yaml else {}
    settings |= torch_configs.settings_of(checkpoint.config)
    where = str(options.yaml or options.checkpoint)
    translation = yaml_configs.translate(settings, program, where, is_later=is_later)
    facts = torch_configs.shape_overrides(kind, tensors)
    chosen = {k for k in settings if k.startswith("tasks.") and k.endswith(".enabled")}
    facts = {k: v for k, v in facts.items() if k.removeprefix("train.") not in chosen}
    arguments = yaml_configs.arguments(translation.overrides | facts)
    file = options.config or f"configs/{yaml_configs.KINDS[program]}.py"
    config = configs.load(file, [*arguments, *overrides])
    config = without_absolute_times(config) if program == "regressor" else config
    task = make_task(config)
    params = from_torch(kind, tensors, config)
    params = {"encoder": params} if kind == "encoder" else params
    ignored = unused(kind, tensors, params)
    origin = {"sha256": checkpoint.sha256, "weights": checkpoint.source}
    write_run(options.output, config, params, task, origin=origin)

    age = "" if is_later else ", layout of January 2026"
    print(f"{options.checkpoint}: {kind}{age}, {checkpoint.source}")
    n_loaded = len(tensors) - len(ignored)
    print(f"loaded {n_loaded} tensors, missing 0, unexpected 0, ignored {len(ignored)}")
    for name in ignored:
        print(f"    ignored {name}")
    named = [text.removeprefix("--config.").split("=")[0] for text in overrides]
    print(translation.doubts({*facts, *named}))
    if kind == "encoder":
        print("this run has an encoder and nothing else: use it with train.init_from")
    print(f"wrote {options.output}")
    return 0


class Checkpoint(NamedTuple):
    """What a .pth file holds.

    Attributes:
        tensors: Arrays by the names of the bare model.
        config: The settings that newer ones carry.
        source: Which weights these are, in words.
        sha256: Of the file.
    """

    tensors: dict[str, "np.ndarray"]
    config: Mapping[str, Any]
    source: str
    sha256: str


def read_checkpoint(path: Path, *, ema: bool = True) -> Checkpoint:
    """Reads a checkpoint without executing anything in it.

    Args:
        path: A .pth file: what the predecessor's trainings wrote, or a bare state.
        ema: Take the moving average of the weights where there is one.

    Raises:
        ConfigError: PyTorch is not installed.
        CheckpointError: No such file, damaged, or no checkpoint.
    """
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            "reading .pth files needs PyTorch", remedy="pip install 'xec_jax[torch]'"
        ) from error
    import numpy as np

    from xec_jax.torch_configs import bare_names

    if not path.is_file():
        raise CheckpointError(f"{path} is no file", expected="a .pth file of the predecessor")
    # Best values may have been saved as numpy scalars, which are numbers and nothing more.
    scalar = np.float64(0).__reduce__()[0]
    known: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    known += [np.dtype, *(type(np.dtype(t)) for t in ("f4", "f8", "i8"))]
    try:
        with torch.serialization.safe_globals(known):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file provokes
        reason = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read: {type(error).__name__}: {reason[:200]}",
            expected="a complete file written by torch.save that holds tensors and numbers",
            remedy="copy it again if it was copied; save the state_dict alone if it holds objects",
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {type(content).__name__}", expected="a state_dict")
    average = content.get("ema_state_dict") if ema else None
    state = average or content.get("model_state_dict") or content
    found = bare_names(state)
    other = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if other or not found:
        shown = ", ".join(map(str, other[:5])) or "nothing"
        raise CheckpointError(
            f"{path} holds {shown} among its weights",
            expected="model_state_dict, or tensors by name",
        )
    source = "moving average" if average else "weights"
    if isinstance(content.get("epoch"), int):
        source += f" of epoch {content['epoch']}"
    return Checkpoint(
        {name: tensor.detach().numpy() for name, tensor in found.items()},
        config if isinstance(config := content.get("config"), Mapping) else {},
        source,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def without_absolute_times(config: "ConfigDict") -> "ConfigDict":
    """Switches the timing head off where the inputs lack the zero that it was trained for."""
    timing, branch = config.train.tasks.timing, config.data.time_branch
    if not timing.enabled or branch is None or "relative" not in branch:
        return config
    print(
        f"timing is left out: it was trained for absolute times, but {branch} has no zero; "
        "with --config.data.time_branch=time it is converted"
    )
    config = config.copy_and_resolve_references().unlock()
    config.train.tasks.timing.enabled = False
    return config.lock()


if __name__ == "__main__":
    run_command(main)
