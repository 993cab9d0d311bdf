"""What the engine itself takes, without a server."""

import os

# As the engine process sets it, before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
