"""What the converter refuses."""

from engine_service.errors import ModelError


class ConversionError(ModelError):
    """The source cannot be converted; ``field`` names the part of it that is wrong."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field
