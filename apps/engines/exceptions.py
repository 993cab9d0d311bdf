"""What can go wrong between the platform and an engine process, by what the caller can do."""

from typing import Literal


class EngineClientError(Exception):
    """Base. ``n_completion_tokens``: how many tokens the request was known to have produced."""

    def __init__(self, message: str, *, n_completion_tokens: int = 0) -> None:
        super().__init__(message)
        self.n_completion_tokens = n_completion_tokens


class EngineRequestError(EngineClientError):
    """The client's fault; ``param`` names the field that is wrong."""

    def __init__(
        self, message: str, *, code: str, param: str | None, n_completion_tokens: int = 0
    ) -> None:
        super().__init__(message, n_completion_tokens=n_completion_tokens)
        self.code = code
        self.param = param


class EngineOverloaded(EngineClientError):
    """The engine is full or draining; try again after ``retry_after_s``, or elsewhere now."""

    def __init__(self, message: str, *, retry_after_s: float, n_completion_tokens: int = 0) -> None:
        super().__init__(message, n_completion_tokens=n_completion_tokens)
        self.retry_after_s = retry_after_s


class EngineFault(EngineClientError):
    """The engine failed at this one request and goes on with the others."""


class EngineDead(EngineClientError):
    """The connection is gone, and with it every request on it."""


class EngineUnresponsive(EngineDead):
    """The engine did not answer in time."""


def engine_client_error(
    *,
    kind: Literal["request", "overloaded", "engine"],
    code: str,
    message: str,
    param: str | None,
    retry_after_s: float | None,
    n_completion_tokens: int,
) -> EngineClientError:
    """Return the exception for an error that an engine reported."""
    match kind:
        case "request":
            return EngineRequestError(
                message, code=code, param=param, n_completion_tokens=n_completion_tokens
            )
        case "overloaded":
            return EngineOverloaded(
                message,
                retry_after_s=retry_after_s or 0.0,
                n_completion_tokens=n_completion_tokens,
            )
        case "engine":
            return EngineFault(message, n_completion_tokens=n_completion_tokens)


class AgentError(Exception):
    """The engine agent cannot work here; the message says what to do."""


class FilesError(Exception):
    """The files of a version cannot be had on this node; the message is for the operator.

    is_final: trying again would end in the same way.
    """

    is_final = False


class NodeCacheFull(FilesError):
    """There is no room for them beside what is in use."""

    def __init__(self, message: str, *, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


class FilesAltered(FilesError):
    """What the storage has is not what was imported."""

    is_final = True


class FetchStopped(FilesError):
    """Whoever wanted them wants them no more."""
