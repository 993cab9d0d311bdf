"""Errors of the registry room."""

from apps.core.exceptions import Conflict, InvalidRequest


class ModelImportError(InvalidRequest):
    """The artifact cannot be imported; ``param`` names the part of it that is wrong."""

    default_code = "model_import_failed"
    default_message = "The model cannot be imported."


class ModelImportRunning(Conflict):
    """Another process is importing the same model."""

    default_code = "model_import_running"
    default_message = "Another import of this model is running."
