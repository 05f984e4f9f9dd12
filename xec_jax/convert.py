"""`python -m xec_jax.convert`: checkpoints and YAML files of the PyTorch predecessor."""

import argparse
import hashlib
import logging
import re
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
    from xec_jax.yaml_tables import KINDS

    if options.yaml is None:
        raise ConfigError("nothing to convert", expected="--checkpoint F.pth or --yaml FILE")
    settings = yaml_configs.read(options.yaml)
    kind = yaml_configs.program_of(settings) if options.kind == "auto" else options.kind
    if kind not in KINDS:
        raise ConfigError(f"--kind {kind} has no YAML file", expected="one that is trained")
    translation = yaml_configs.translate(settings, kind, str(options.yaml))
    file = options.config or f"configs/{KINDS[kind]}.py"
    default = configs.flatten(configs.load(file))
    configs.load(file, [*yaml_configs.arguments(translation.overrides), *overrides])  # checks
    config = configs.load(file, yaml_configs.arguments(translation.overrides))
    final = configs.flatten(config)
    idle = beside_switches_that_are_off(final) & set(translation.assumed)
    wanted = {k: v for k, v in translation.overrides.items() if k not in idle}
    changed = {k: v for k, v in wanted.items() if final.get(k, v) != default[k]}
    folder = Path(settings.get("checkpoint.save_dir") or "runs")
    workdir = folder / str(settings.get("mlflow.run_name") or options.yaml.stem)
    print(f"# {options.yaml}: {kind}; what is not listed is as in {file}")
    print(f"# {translation.era}")
    command = [f"python -m xec_jax.train --config {file} --workdir {shlex.quote(str(workdir))}"]
    command += [shlex.quote(text) for text in (*yaml_configs.arguments(changed), *overrides)]
    print(" \\\n    ".join(command))
    same = set(wanted) - set(changed) - matter(config)
    print(translation.doubts(idle | same | named(overrides)))
    return 0


def beside_switches_that_are_off(flat: Mapping[str, Any]) -> set[str]:
    """Returns the keys of groups whose `enabled` is False: they mean nothing."""
    switch = ".enabled"
    off = [k.removesuffix(switch) for k, on in flat.items() if k.endswith(switch) and not on]
    return {k for k in flat if k.rpartition(".")[0] in off and not k.endswith(switch)}


def named(overrides: Sequence[str]) -> set[str]:
    """Returns the keys that --config.key=value arguments set."""
    return {text.removeprefix("--config.").split("=")[0] for text in overrides}


def matter(config: "ConfigDict") -> set[str]:
    """Returns the keys that the numbers of a trained network depend on."""
    from xec_jax import config as configs

    pattern = r"data\.(normalization\..*|npho_branch|time_branch)|model\..*"
    found = {key for key in configs.flatten(config) if re.fullmatch(pattern, key)}
    if "tasks" in config.train and config.train.tasks.energy.enabled:
        found.add("train.tasks.energy.log_transform")
    found -= {"model.mask_ratio", "model.freeze_encoder", "model.drop_path_rate"}
    is_asking = config.model.get("head_type") == "cross_attention"
    return {key for key in found if is_asking or "cross_attn" not in key}


def convert(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Writes a checkpoint as a run; everything is checked before anything is written."""
    checkpoint = read_checkpoint(options.checkpoint, ema=not options.no_ema)
    from xec_jax import config as configs
    from xec_jax import torch_configs, yaml_configs
    from xec_jax.tasks.base import make_task
    from xec_jax.torch_weights import check_maps, from_torch, unused
    from xec_jax.train.saved import write_run
    from xec_jax.yaml_tables import KINDS, shipped

    tensors = checkpoint.tensors
    kind = torch_configs.kind_of(tensors) if options.kind == "auto" else options.kind
    # A bare encoder comes from a pretraining; its run has no decoders.
    program = "mae" if kind == "encoder" else kind
    is_later = torch_configs.is_later(kind, tensors)
    is_single = torch_configs.is_single_task(kind, tensors)
    settings = yaml_configs.read(options.yaml) if options.yaml else {}
    settings |= torch_configs.settings_of(checkpoint.config)
    facts = torch_configs.shape_overrides(kind, tensors)
    if any(re.fullmatch(r"tasks\.\w+\.enabled", key) for key in settings):
        facts = {k: v for k, v in facts.items() if not k.endswith(".enabled")}
    if "model.outer_fine_pool" in settings:  # tensors give a hint only
        facts.pop("model.outer_fine_pool", None)
    facts["train.precision"] = "float32"  # half precision matters in training alone
    translation = yaml_configs.translate(
        settings,
        program,
        str(options.yaml or options.checkpoint),
        # A YAML file stood on the code's defaults; without one the code's own file is likely.
        silent=None
        if options.yaml
        else shipped("regressor" if is_single else program, is_later=is_later),
        facts=facts,
        is_later=is_later,
    )
    arguments = yaml_configs.arguments(translation.overrides)
    file = options.config or f"configs/{KINDS[program]}.py"
    # Others chose the normalization: data that do not fit it are refused, not warned about.
    config = configs.load(file, [*arguments, "--config.data.strict_scheme=true", *overrides])
    config = without_absolute_times(config) if program == "regressor" else config
    task = make_task(config)
    params = from_torch(kind, tensors, config)
    params = {"encoder": params} if kind == "encoder" else params
    other_maps = check_maps(tensors, config) if kind == "inpainter" else ""
    ignored = unused(kind, tensors, params)
    origin = {"sha256": checkpoint.sha256, "weights": checkpoint.source}
    write_run(options.output, config, params, task, origin=origin)

    print(f"{options.checkpoint}: {kind}, {checkpoint.source}; {translation.era}")
    n_loaded = len(tensors) - len(ignored)
    print(f"loaded {n_loaded} tensors, missing 0, unexpected 0, ignored {len(ignored)}")
    for name in ignored:
        print(f"    ignored {name}")
    same = set(translation.overrides) - matter(config)
    print(translation.doubts(same | named(overrides)))
    if "head_outer_sensor.gather_indices" not in tensors:
        print(f"outer face: the {config.model.geometry} map, as for the hexagonal graphs (assumed)")
    if other_maps:
        print(f"other than in the checkpoint: {other_maps}; predictions there differ a little")
    if kind == "inpainter" and config.model.head_type == "masked_attention":
        print("dead neighbors are left out of the attention; the predecessor left out hidden ones")
    if is_single:
        print("single-task angle regressor: its head has one layer less and is not converted")
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
            "reading .pth files needs PyTorch", remedy="pip install -e '.[torch]'"
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
    plain = content.get("model_state_dict") or content
    state = average or plain
    found = bare_names(state) if isinstance(state, Mapping) else {}
    absent = bare_names(plain).keys() - found.keys() if average and plain is not content else ()
    if absent:
        shown = ", ".join(sorted(absent)[:3])
        raise CheckpointError(
            f"{path}: its ema_state_dict lacks {len(absent)} tensors of its weights: {shown} ...",
            expected="a moving average of all of them, by the same names",
            remedy="--no_ema takes the weights themselves",
        )
    other = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if other or not found:
        shown = ", ".join(map(str, other[:5])) or "nothing"
        raise CheckpointError(
            f"{path} holds {shown} among its weights",
            expected="model_state_dict, or tensors by name",
            remedy="--no_ema takes the weights themselves" if average else "",
        )
    source = "moving average" if average else "weights"
    if isinstance(content.get("epoch"), int):
        source += f" of epoch {content['epoch']}"
    return Checkpoint(
        {
            # numpy knows no bfloat16
            name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
            for name, tensor in found.items()
        },
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
