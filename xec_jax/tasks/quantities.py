"""What a config says about the quantities to regress: `train.tasks`, read and checked."""

from ml_collections import ConfigDict

from xec_jax.config import nearest
from xec_jax.data.truth import is_energy
from xec_jax.errors import ConfigError
from xec_jax.nets.augment import ENERGY
from xec_jax.targets import DIRECTIONS, QUANTITIES, Target
from xec_jax.tasks import calorimeter


def targets_of(config: ConfigDict) -> tuple[Target, ...]:
    """Reads `train.tasks`: the quantities that are switched on.

    Raises:
        ConfigError: An unknown quantity or loss, or a combination that cannot work.
    """
    for name in config.train.tasks:
        if name not in QUANTITIES:
            found = f"train.tasks has {name!r}"
            raise ConfigError(found, expected=nearest(name, QUANTITIES))
    targets = tuple(
        _target(config, name)
        for name in QUANTITIES
        if name in config.train.tasks and config.train.tasks[name].enabled
    )
    if not any(target.weight for target in targets):
        raise ConfigError(
            "no quantity is switched on, or none has a weight",
            expected="train.tasks.X.enabled for one of " + ", ".join(QUANTITIES),
        )
    return targets


def _target(config: ConfigDict, name: str) -> Target:
    task, where = config.train.tasks[name], f"train.tasks.{name}"
    affine = config.model.affine.get(name) or {}
    target = Target(
        name,
        branch=task.branch or "",
        loss_fn=task.loss_fn,
        loss_beta=task.loss_beta,
        weight=task.weight,
        log_transform=task.log_transform,
        quantiles=tuple(task.quantiles),
        reference=_reference(config) if name == "timing" else None,
        mean=tuple(affine.get("mean") or ()),
        std=tuple(affine.get("std") or ()),
        in_std=config.train.loss_units == "std",
    )
    with calorimeter.named(f"{where}."):
        _ = target.pointwise  # an unknown loss
    loss, balance = f"{where}.loss_fn is {task.loss_fn!r}", config.train.loss_balance
    relative = "relative" in config.data.npho_branch and not config.data.allow_relative_energy
    numbers = {len(target.mean), len(target.std)}
    refused = (
        (not target.branch, f"{where}.branch is not set", "the branch with the truth"),
        (
            name == "energy" and task.log_transform and "relative" in task.loss_fn,
            f"{loss} with {where}.log_transform",
            "a plain loss: the difference of logarithms is relative already",
        ),
        (
            target.is_class != (task.loss_fn == "cross_entropy"),
            loss,
            "cross_entropy for the number of a class, and for nothing else",
        ),
        (
            task.loss_fn in ("cosine", "angular") and name not in DIRECTIONS,
            loss,
            "a loss that compares numbers; directions are " + " and ".join(DIRECTIONS),
        ),
        (
            task.loss_fn == "quantile" and not _are_quantiles(target.quantiles),
            f"{where}.quantiles is {target.quantiles}",
            "ascending numbers inside (0, 1), 0.5 among them",
        ),
        (
            task.loss_fn == "gaussian_nll" and balance == "auto",
            f"{loss} with train.loss_balance 'auto'",
            "manual: a likelihood below 0 times a learned factor has no minimum",
        ),
        (
            task.log_transform and name != "energy",
            f"{where}.log_transform is True",
            "False: only the energy is always positive",
        ),
        (
            name == "energy" and relative,
            f"{where} is on, but data.npho_branch is {config.data.npho_branch!r}, "
            "which does not know the energy",
            "data.npho_branch=npho, or data.allow_relative_energy=true to try nevertheless",
        ),
        (
            name == "energy" and config.data.augment.energy_scale and task.branch != ENERGY,
            f"{where}.branch is {task.branch!r} with data.augment.energy_scale",
            f"{ENERGY}, the truth that is scaled with the photons",
        ),
        (
            name == "energy" and config.data.energy_unit != "GeV" and not is_energy(target.branch),
            f"{where}.branch is {task.branch!r} with data.energy_unit {config.data.energy_unit!r}",
            "a branch whose name begins with energy: of others the unit is not known",
        ),
        (not task.weight >= 0, f"{where}.weight is {task.weight}", "0 or a positive number"),
        (
            len(numbers) == 2,
            f"model.affine.{name} has mean {target.mean} and std {target.std}",
            "both, or None for both",
        ),
        (
            bool(target.std) and config.model.output_affine != "auto",
            f"model.affine.{name} is set with model.output_affine {config.model.output_affine!r}",
            "model.output_affine=auto, which keeps what is set",
        ),
        (
            not numbers <= {0, target.n_components} or not all(s > 0 for s in target.std),
            f"model.affine.{name} has mean {target.mean} and std {target.std}",
            f"{target.n_components} number(s) each, std above 0; or None",
        ),
    )
    for is_refused, found, expected in refused:
        if is_refused:
            raise ConfigError(found, expected=expected)
    return target


def _are_quantiles(shares: tuple[float, ...]) -> bool:
    is_rising = all(a < b for a, b in zip((0.0, *shares), (*shares, 1.0), strict=True))
    return is_rising and 0.5 in shares


def _reference(config: ConfigDict) -> str | None:
    """Returns the branch whose time was subtracted from the input times.

    The zero of relative times is not in the input: without it a network can only learn the mean
    of an absolute time.
    """
    chosen, branch = config.train.tasks.timing.reference, config.data.time_branch
    if chosen not in ("auto", "none", None, "time_min_used"):
        found = f"train.tasks.timing.reference is {chosen!r}"
        raise ConfigError(found, expected="auto, none or time_min_used")
    if branch is None or ("relative" in branch and chosen in ("none", None)):
        raise ConfigError(
            f"train.tasks.timing is on, data.time_branch is {branch!r} and "
            f"train.tasks.timing.reference is {chosen!r}: the time is not in the input",
            expected="absolute times, or the branch with their zero",
            remedy="data.time_branch=time, or train.tasks.timing.reference=time_min_used, or "
            "train.tasks.timing.enabled=false",
        )
    if chosen == "auto":
        return "time_min_used" if "relative" in branch else None
    return "time_min_used" if chosen == "time_min_used" else None
