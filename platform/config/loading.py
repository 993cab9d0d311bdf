"""What a process loads as it starts stays until it ends. To look through those hundreds of
thousands of objects for garbage takes a sixth of the start, and most of the end."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Collect no garbage in the block, and never look at what is there behind it. When the process
    ends, it goes without a last look at all the rest, too."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)
