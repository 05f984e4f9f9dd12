"""The optimizer, and rules for parts of the network by regular expressions on parameter paths.

A path is like `head_energy/norm/scale`; a pattern counts wherever it is found in one.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.train.schedules import Schedule
from xec_jax.types import LossFn, Params

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def make_optimizer(
    optim: ConfigDict, schedule: Schedule, frozen: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Builds clipping and AdamW or AMSGrad (beta 0.9 / 0.999, epsilon 1e-8).

    `update` takes the extra arguments `step`, completed steps, and `plateau`, the state of a
    schedule that has one. `init` raises ConfigError for a rule that decides for no parameter, and
    if nothing is left to train.

    Args:
        optim: Keys `weight_decay`; `no_decay`, patterns; `grad_clip`, global norm, 0 disables;
            `amsgrad`; `frozen`, patterns; `lr_scale`, (pattern, factor) pairs of which the first
            that is found in a path multiplies rate and decay of the parameter.
        schedule: Learning rate.
        frozen: Further patterns of parameters that stay as they are. Such parameters take neither
            part in the norm of the gradient nor memory in the optimizer.

    Raises:
        ConfigError: A pattern that is no regular expression, a pair that is none.
    """
    _check_rules(optim)
    everything_frozen = (*frozen, *optim.frozen)
    adam = optax.scale_by_adam(BETA1, BETA2, EPSILON)
    trained = optax.chain(
        optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip > 0 else optax.identity(),
        scale_by_amsgrad() if optim.amsgrad else adam,
        optax.add_decayed_weights(
            optim.weight_decay, mask=lambda params: unmatched(params, optim.no_decay)
        ),
        scale_by_rate(schedule, optim.lr_scale),
    )

    def label(params: Params) -> Params:
        is_trained = unmatched(params, everything_frozen)
        return jax.tree.map(lambda yes: "trained" if yes else "frozen", is_trained)

    inner = trained
    if everything_frozen:
        inner = optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, label)

    def init(params: Params) -> optax.OptState:
        _check_use(params, optim, everything_frozen)
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, optax.with_extra_args_support(inner).update)


class AmsgradState(NamedTuple):
    """Moments of the gradients.

    Attributes:
        adam: Those of Adam.
        largest: Second moments at their largest.
    """

    adam: optax.ScaleByAdamState
    largest: Params


def scale_by_amsgrad() -> optax.GradientTransformation:
    """Adam with the largest second moment so far, as in torch.

    The maximum is that of the moments as they are, and then corrected for the start at zero. optax
    takes the maximum of corrected ones, which the first gradients dominate.
    """
    moments = optax.scale_by_adam(BETA1, BETA2, EPSILON)

    def init(params: Params) -> AmsgradState:
        return AmsgradState(moments.init(params), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        _, adam = moments.update(updates, state.adam, params)
        largest = jax.tree.map(jnp.maximum, state.largest, adam.nu)
        first = optax.tree.bias_correction(adam.mu, BETA1, adam.count)
        second = optax.tree.bias_correction(largest, BETA2, adam.count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + EPSILON), first, second)
        return updates, AmsgradState(adam, largest)

    return optax.GradientTransformation(init, update)


def scale_by_rate(
    schedule: Schedule, lr_scale: Sequence[tuple[str, float]] = ()
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the learning rate at the training step, and factors of parts.

    optax counts updates itself, but a skipped update must not hold the schedule back, so the step
    comes from outside, as the extra argument `step`.
    """
    patterns = [pattern for pattern, _ in lr_scale]
    factors = [*(factor for _, factor in lr_scale), 1.0]

    def update(updates, state, params=None, *, step, plateau=None, **_):
        rate = schedule.rate(step, plateau)

        def scale(path: Sequence, update):
            return -rate * factors[first_match(parameter_path(path), patterns)] * update

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def hold(loss: LossFn, frozen: Sequence[str]) -> LossFn:
    """Stops the gradients of frozen parameters, so that nothing is computed for them."""

    def held(params: Params, batch: Any, key: Any):
        is_trained = unmatched(params, frozen)
        stop = jax.lax.stop_gradient
        params = jax.tree.map(lambda p, yes: p if yes else stop(p), params, is_trained)
        return loss(params, batch, key)

    return held if frozen else loss


def describe_groups(params: Params, optim: ConfigDict, frozen: Sequence[str] = ()) -> list[str]:
    """Says in a line for each rule what it decides for; nothing where no rule is.

    Args:
        params: Parameters, or their shapes.
        optim: The group `optim` of a config.
        frozen: Patterns of the task.
    """
    held, scaled = (*frozen, *optim.frozen), tuple(optim.lr_scale)
    if not held and not scaled:
        return []
    rules = [*((pattern, 0.0) for pattern in held), *scaled, ("all others", 1.0)]
    sizes, decaying = [0] * len(rules), [0] * len(rules)
    for path, size in _sizes(params).items():
        rule = first_match(path, [pattern for pattern, _ in rules[:-1]])
        sizes[rule] += size
        decaying[rule] += size * (first_match(path, optim.no_decay) == len(optim.no_decay))
    width = max(len(pattern) for pattern, _ in rules)
    lines = []
    for (pattern, factor), size, n_decay in zip(rules, sizes, decaying, strict=True):
        what = f"rate x {factor:g}, {n_decay:,} of them decay" if factor else "frozen"
        lines.append(f"{pattern:{width}}  {size:>11,} parameters, {what}")
    return lines


def parameter_path(path: Sequence) -> str:
    """Turns a tree path into `a/b/c`."""
    names = ("key", "name", "idx")
    return "/".join(str(next(getattr(p, n) for n in names if hasattr(p, n))) for p in path)


def first_match(path: str, patterns: Sequence[str]) -> int:
    """Returns the place of the first pattern that is found in a path; their number if none is."""
    found = (n for n, pattern in enumerate(patterns) if re.search(pattern, path))
    return next(found, len(patterns))


def unmatched(params: Params, patterns: Sequence[str]) -> Params:
    """Returns True for every parameter whose path none of the patterns finds."""

    def is_free(path: Sequence, _) -> bool:
        return first_match(parameter_path(path), patterns) == len(patterns)

    return jax.tree_util.tree_map_with_path(is_free, params)


def _sizes(params: Params) -> dict[str, int]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {parameter_path(path): leaf.size for path, leaf in leaves}


def _check_rules(optim: ConfigDict) -> None:
    for pair in optim.lr_scale:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        is_number = is_pair and isinstance(pair[1], int | float) and not isinstance(pair[1], bool)
        if not is_number or not 0 < pair[1] < math.inf:
            raise ConfigError(
                f"optim.lr_scale holds {pair!r}",
                expected="(regular expression, factor above 0) pairs, as in (('^encoder/', 0.1),)",
                remedy="what is not to be trained at all belongs into optim.frozen",
            )
    scaled = tuple(pattern for pattern, _ in optim.lr_scale)
    for key, patterns in (
        ("no_decay", optim.no_decay),
        ("frozen", optim.frozen),
        ("lr_scale", scaled),
    ):
        if isinstance(patterns, str):
            raise ConfigError(
                f"optim.{key} is the text {patterns!r}",
                expected=f"a tuple of regular expressions, as in ({patterns!r},)",
            )
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ConfigError(
                    f"optim.{key} holds {pattern!r}: {error}", expected="regular expressions"
                ) from error


def _check_use(params: Params, optim: ConfigDict, frozen: Sequence[str]) -> None:
    """A rule without parameters is a slip that would silently train something else."""
    paths = list(_sizes(params))
    parts = {path[: end.start()] for path in paths for end in re.finditer("/|$", path)}
    scaled = [pattern for pattern, _ in optim.lr_scale]
    for key, patterns in (("frozen", optim.frozen), ("lr_scale", scaled)):
        for pattern in patterns:
            if not any(re.search(pattern, path) for path in paths):
                raise ConfigError(
                    f"optim.{key}: no parameter has {pattern!r} in its path",
                    expected=nearest(pattern.strip("^$/"), parts),
                )
    used = {first_match(path, scaled) for path in paths}
    for place, pattern in enumerate(scaled):
        if place not in used:
            raise ConfigError(
                f"optim.lr_scale: every parameter of {pattern!r} belongs to a pair before it",
                remedy="put this pair first: of several, the first counts",
            )
    if all(first_match(path, frozen) < len(frozen) for path in paths):
        raise ConfigError(
            f"all parameters are frozen by {', '.join(map(repr, frozen))}",
            expected="something to train",
            remedy="narrow optim.frozen",
        )
