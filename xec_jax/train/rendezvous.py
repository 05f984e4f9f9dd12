"""Where the threads that write one checkpoint in several processes wait for each other.

A barrier of JAX or orbax waits for a process whose disk is full until its time is over, or for
ever. This one is broken by the process that failed, and then nobody waits in vain.
"""

import itertools

from xec_jax.train import distributed

MEETINGS = 2
"""How often the threads of one save meet: when all have written, when the step has its name."""

_numbers = itertools.count(1)


class Rendezvous:
    """The meetings of one save. All processes make theirs in the same order."""

    def __init__(self) -> None:
        self._name = f"xec_jax/rendezvous/{next(_numbers)}"
        self._met = 0

    def wait(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes are here, in any thread.

        Args:
            key: Name that orbax gives to the meeting; they are counted here instead.
            timeout_ms: For how long to wait for each process, in ms.

        Raises:
            OSError: Another process failed.
            JaxRuntimeError: It took too long.
        """
        client = distributed.coordinator()
        self._met += 1
        client.key_value_set(self._place(distributed.index(), self._met), "here")
        for index in range(distributed.count()):
            place = self._place(index, self._met)
            if client.blocking_key_value_get(place, timeout_ms) != "here":
                raise OSError("another process could not save")

    def cancel(self) -> None:
        """Says that this process failed: every other one is released, now or when it comes."""
        if distributed.count() == 1:
            return
        for meeting in range(1, MEETINGS + 1):
            place = self._place(distributed.index(), meeting)
            distributed.coordinator().key_value_set(place, "failed", allow_overwrite=True)

    def clear(self) -> None:
        """Removes what the coordinator holds of this process, once all of them are through."""
        if distributed.count() > 1:
            distributed.coordinator().key_value_delete(f"{self._name}/{distributed.index()}")

    def _place(self, index: int, meeting: int) -> str:
        return f"{self._name}/{index}/{meeting}"
