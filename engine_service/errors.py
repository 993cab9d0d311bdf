"""Errors of the engine process, by whose fault they are."""

from engine_service.protocol import WireError


class EngineError(Exception):
    """Base; ``to_wire`` gives the form that crosses the socket."""

    def to_wire(self) -> WireError:
        return WireError(kind="engine", code="engine_error", message=str(self))


class RequestError(EngineError):
    """The request cannot be honoured; ``param`` names the field that is wrong."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param

    def to_wire(self) -> WireError:
        return WireError(kind="request", code=self.code, message=str(self), param=self.param)


class WrongTask(RequestError):
    """An embedding is asked of a model that generates, or the other way round."""

    def __init__(self, *, param: str) -> None:
        message = "This model does not generate text: it makes embeddings."
        if param == "input":
            message = "This model does not make embeddings: it generates text."
        super().__init__(message, code="unsupported_task", param=param)


class Overloaded(EngineError):
    """A bounded queue is full; the same request may succeed after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def to_wire(self) -> WireError:
        return WireError(
            kind="overloaded",
            code="engine_overloaded",
            message=str(self),
            retry_after_s=self.retry_after_s,
        )


class DeadlineExceeded(EngineError):
    """A request waited beyond its deadline, because others had to go first."""

    def to_wire(self) -> WireError:
        return WireError(
            kind="overloaded", code="deadline_exceeded", message=str(self), retry_after_s=1.0
        )


class Stalled(EngineError):
    """A request that can make no progress was given up, so that the others can."""

    def to_wire(self) -> WireError:
        return WireError(kind="engine", code="stalled", message=str(self))


class ModelError(EngineError):
    """A model directory is incomplete, altered or of an unsupported kind; nothing starts."""


class EngineLost(EngineError):
    """The engine can compute no more, whatever is asked of it: the process is to end and be
    started again."""
