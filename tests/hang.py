"""The limit that ends a hang. It is far above what any test needs, so that no test depends on the machine's speed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 1200.0  # for a process that a test waits for
CPU_SECONDS = 60.0  # for code that must not be slow on hostile input


@contextmanager
def no_hang() -> Iterator[None]:
    """Fails if the block used more than CPU_SECONDS of this process: the time is quadratic, or worse."""
    start = time.process_time()
    yield
    assert time.process_time() - start < CPU_SECONDS
