"""What a piece of work takes: seconds, seconds of all cores, and the most memory that its process held."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


def rss() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(run: Callable[[], float]) -> tuple[float, float, int, float]:
    """(seconds, CPU seconds, bytes of the process at its peak, what `run` returned)."""
    peak, done = rss(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, rss())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    value = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done.set()
    watcher.join()
    return wall, cpu, peak, value
