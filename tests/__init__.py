"""Tests. Without an NVIDIA GPU the kernels in Triton run in its interpreter, which Triton has
to know when it is first imported, by whichever test that is."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
