"""What the first events of a source tell before a long job: warnings, or an error if asked."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from xec_jax.data.survey.doubts import doubts
from xec_jax.errors import DataError

logger = logging.getLogger(__name__)


def look(
    arrays: Mapping[str, np.ndarray],
    where: str,
    names: Mapping[str, str],
    *,
    normalization: Mapping[str, Any] | None,
    strict_scheme: bool,
) -> None:
    """Warns of all doubts about some events.

    Args:
        arrays: The events by key of the batch.
        where: Where they are from, file and tree.
        names: Branch behind each key that is to be looked at, `npho` among them.
        normalization: See `doubts`.
        strict_scheme: Whether values that do not fit the normalization are an error.

    Raises:
        DataError: They are, and do not.
    """
    found = doubts(
        {names[key]: values for key, values in arrays.items() if key in names},
        npho_branch=names["npho"],
        time_branch=names.get("time"),
        normalization=normalization,
    )
    for doubt in found:
        if strict_scheme and doubt.kind == "scheme":
            raise DataError(
                f"{where}: {doubt.found}",
                expected="values that fit the constants",
                remedy=doubt.remedy,
            )
        logger.warning("%s: %s; %s", where, doubt.found, doubt.remedy)
