"""The engine process: one model replica behind a local Unix socket. Knows nothing of Django."""
