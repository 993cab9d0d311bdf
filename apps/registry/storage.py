"""The directory where models' files lie unless a bucket is configured. Knows folders only."""

from pathlib import Path

from django.conf import settings
from django.core.files.storage import FileSystemStorage


class ModelsDirectory(FileSystemStorage):
    """``MODELS_DIR``, which importers and agents share: files are used where they are."""

    @property
    def base_location(self) -> str:  # by the settings of now
        return str(settings.MODELS_DIR)

    @property
    def location(self) -> str:
        return str(Path(self.base_location).absolute())
