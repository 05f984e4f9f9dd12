"""Reading for ever takes no more memory, threads and file handles than reading for a while."""

import ctypes
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from test_data_root import write

from xec_jax.data.root.source import RootSource

MB = 2**20
EVENTS, SENSORS = 900, 4760


def resident():
    """Memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Follows the memory every millisecond, in a thread."""

    def __enter__(self):
        self.peak, self._stop = resident(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self):
        while not self._stop.is_set():
            self.peak = max(self.peak, resident())
            time.sleep(0.001)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module", params=["tree", "ntuple"])
def files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for number in range(3):
        write(
            folder / f"{number}.root",
            [50] * (EVENTS // 150),
            first=number * EVENTS // 3,
            sensors=SENSORS,
            kind=request.param,
        )
    return folder


def epoch(source, number):
    steps = source.steps_per_epoch(size=30)
    for step in range(number * steps, (number + 1) * steps):
        source.batch(step, size=30)


def test_five_more_epochs_take_nothing(files):
    """Each reads all files again: the windows hold 200 of 900 events."""
    with RootSource(files, shuffle_buffer=200, smallest_read=50, extra=("event",)) as source:
        epoch(source, 0)
        epoch(source, 1)  # allocators settle
        before = resident(), threading.active_count(), len(os.listdir("/proc/self/fd"))
        for number in range(2, 7):
            epoch(source, number)
        after = resident(), threading.active_count(), len(os.listdir("/proc/self/fd"))
        assert source.stats.events > 6 * EVENTS
    # Two windows are alive while a third is prepared: what is measured depends on the moment.
    assert after[0] - before[0] < 200 * 2 * 4 * SENSORS + 4 * MB
    assert after[1:] == before[1:]


def reading_takes(files, bound):
    """What reading takes at most, in bytes; in a process whose heap nobody has used before."""
    with RootSource(files, max_ram_gb=bound / 1e9, smallest_read=50) as source:
        assert source.window < EVENTS / 2
        epoch(source, 0)  # the libraries and the pools of the allocators
    ctypes.CDLL(None).malloc_trim(0)  # what the first one freed is measured again
    begun = resident()
    with RootSource(files, max_ram_gb=bound / 1e9, smallest_read=50) as source, Watch() as watch:
        for number in range(3):
            epoch(source, number)
    return watch.peak - begun


def test_the_bound_of_the_memory_holds(files):
    bound = 0.03e9  # bytes; the data are 34 MB, and windows hold 315 of the 900 events
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        taken = alone.submit(reading_takes, files, bound).result()
    batch = 2 * 30 * 2 * 4 * SENSORS
    print(f"{taken / 1e6:.1f} MB of {bound / 1e6:.0f} MB")
    assert taken < bound + batch


def test_a_cut_and_quarantine_take_no_more(files):
    """Rows that are cut away pass through the memory of one range at a time."""
    limits = {"u": EVENTS / 2}  # of 900 events, u is the number
    with RootSource(
        files, shuffle_buffer=200, smallest_read=50, fiducial=limits, on_bad_file="skip"
    ) as source:
        for number in range(2):
            epoch(source, number)
        before = resident()
        for number in range(2, 5):
            epoch(source, number)
        assert resident() - before < 200 * 2 * 4 * SENSORS + 4 * MB
        assert source.report()["cut"] == EVENTS / 2
        assert np.isfinite(source.batch(0, size=3)["npho"]).all()
