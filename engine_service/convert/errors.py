"""What the converter refuses."""

from engine_service.errors import ModelError

# Messages quote names and values of the source, which can be long.
MAX_MESSAGE_CHARS = 500


class ConversionError(ModelError):
    """The source cannot be converted; ``field`` names the part of it that is wrong."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message[:MAX_MESSAGE_CHARS])
        self.field = field[:MAX_MESSAGE_CHARS]
