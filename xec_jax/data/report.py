"""What became of the entries of a data set, said in one line."""

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def log_report(found: Mapping[str, Any]) -> None:
    """Logs what a source reports: a warning if anything is missing, else for information.

    Args:
        found: What `RootSource.report` or `TfdsSource.report` returned.
    """
    is_bad = found["skipped"] or found["bad_files"]
    ranges = f" in {len(found['quarantine'])} ranges" if found["quarantine"] else ""
    logger.log(
        logging.WARNING if is_bad else logging.INFO,
        "%d entries: %d seen, %d skipped%s, %d cut, %d not read yet; %d dead events, "
        "%d negative photon counts, %d values replaced, %d bad files left out",
        *(found[name] for name in ("entries", "seen", "skipped")),
        ranges,
        *(found[name] for name in ("cut", "unread", "dead_events", "negative")),
        *(sum(found["replaced"].values()), len(found["bad_files"])),
    )
