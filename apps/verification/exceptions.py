"""Errors of the verification room."""


class VerificationFailed(Exception):
    """The version does not do what it has to; the message says what was seen. log: the end of the
    engine's."""

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class ReadingStopped(Exception):
    """Files were being read, and whoever wanted that wants it no more."""
