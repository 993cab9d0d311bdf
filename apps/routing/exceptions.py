"""What can be wrong with a public model name."""

from apps.core.exceptions import NotFound, Unavailable


class ModelNotFound(NotFound):
    default_code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model {name[:120]!r} does not exist.", param="model")


class NoReplicaReady(Unavailable):
    default_code = "engine_unavailable"

    def __init__(self, name: str) -> None:
        super().__init__(f"No engine is ready for the model {name!r} at the moment.")
