"""What one client, or all of them together, may take of the engine process."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Counts, bytes and seconds; beyond them a request is refused or a connection closed."""

    max_connections: int = 64
    max_preparing: int = 512
    max_prepared: int = 256  # of one connection, not started yet
    max_started: int = 512  # of one connection
    prepared_ttl_s: float = 60.0
    max_request_id_chars: int = 128
    max_send_bytes: int = 4 * 1024 * 1024
    max_answer_bytes: int = 2 * 1024 * 1024  # of one question about text
    max_unsent_answers_bytes: int = 64 * 1024 * 1024
    max_pings: int = 8
    max_undelivered_steps: int = 8
    hello_timeout_s: float = 10.0
    close_timeout_s: float = 2.0
