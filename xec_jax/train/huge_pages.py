"""Huge memory pages for training on a CPU, without asking the user for an environment variable.

XLA on a CPU takes and returns its temporary arrays at every step; with pages of 4 kB the kernel
spends a third of the time on page faults (18 instead of 26 events/s for the full autoencoder on
two cores). glibc reads its tunable at the start of a process only, so the command starts itself
again, once. It costs nothing where a GPU does the work.
"""

import os
import platform
import sys
from collections.abc import Mapping

TUNABLE = "glibc.malloc.hugetlb=1"
OFF = "XEC_JAX_HUGE_PAGES"


def environment_with_huge_pages(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Returns the environment to start again with, or None where there is nothing to gain.

    `XEC_JAX_HUGE_PAGES=0` switches it off; a tunable that the user has set is left alone.
    """
    is_wanted = environment.get(OFF, "1") != "0"
    if not is_wanted or platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    tunables = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables:
        return None
    return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, TUNABLE)))}


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with huge pages; returns if it has them."""
    environment = environment_with_huge_pages(os.environ)
    if environment is None:
        return
    print(f"using huge memory pages (GLIBC_TUNABLES={TUNABLE}; {OFF}=0 switches it off)")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606
