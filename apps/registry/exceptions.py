"""Errors of the registry room."""

from apps.core.exceptions import Conflict, InvalidRequest, PayloadTooLarge, Unavailable


class ModelImportError(InvalidRequest):
    """The artifact cannot be imported; ``param`` names the part of it that is wrong."""

    default_code = "model_import_failed"
    default_message = "The model cannot be imported."


class ModelImportRunning(Conflict):
    """Another process is importing the same model."""

    default_code = "model_import_running"
    default_message = "Another import of this model is running."


class StageMoveRefused(Conflict):
    """A version cannot go from the stage that it is in to another."""

    default_code = "stage_move_refused"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="stage")


class StageNotDeployable(Conflict):
    """No deployment may be made or started of a version in this stage."""

    default_code = "stage_not_deployable"

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message, param=param)


class VerificationRefused(Conflict):
    """No verification can begin, or be cancelled, as things are."""

    default_code = "verification_refused"


class VerificationLost(Exception):
    """Another worker has the verification, or it has ended: whoever gets this writes nothing
    more."""


class ImportNotCancellable(Conflict):
    default_code = "import_not_cancellable"


class UploadOutOfStep(Conflict):
    """A piece of an upload does not begin where the last one ended."""

    default_code = "upload_out_of_step"


class UploadTooLarge(PayloadTooLarge):
    default_code = "upload_too_large"


class ImportLeaseLost(Exception):
    """Another worker holds the job, or it has ended: whoever gets this stops and writes nothing
    more of it."""


class StorageAway(Unavailable):
    """The storage of artifacts does not answer, or says no. It may later."""

    default_code = "artifact_storage_away"
    default_message = "The artifact storage does not answer."


class ArtifactMissing(Conflict):
    """A file of a version is not in the storage."""

    default_code = "artifact_missing"


class ArtifactAltered(Conflict):
    """A file of a version is not what was imported."""

    default_code = "artifact_altered"


class VersionInUse(Conflict):
    """A version cannot be deleted while something needs it."""

    default_code = "model_version_in_use"
