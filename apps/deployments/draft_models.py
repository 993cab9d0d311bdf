"""What an engine refuses of a draft model, said before it is started. The rules are those of
``engine_service``: ``config.py``, and that both models have one vocabulary."""

from typing import TYPE_CHECKING, Final

from django.db.models import F, Q

from apps.registry.selectors import is_vocabulary_shared

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.registry.models import ModelVersion

# What every row has.
NONE_OR_ANOTHER: Final = Q(draft_version__isnull=True) | (
    Q(remote__isnull=True, backend="native") & ~Q(draft_version=F("model_version"))
)
# Guesses come from one thing.
NONE_OR_ALONE: Final = Q(draft_version__isnull=True) | Q(speculation="auto")


def wrong_draft(deployment: "Deployment") -> dict[str, str]:
    """Return what is wrong with its draft model, by field; nothing where it has none."""
    draft = deployment.draft_version
    text = "" if draft is None else _refusal(deployment, draft)
    return {"draft_version": text} if text else {}


def _refusal(deployment: "Deployment", draft: "ModelVersion") -> str:
    target = deployment.model_version
    if target is None:
        return "A remote server sees to that itself."
    if deployment.backend != "native":
        return "nano-vllm does not have this: let our own engine run it."
    if target.task == "embed":
        return "An embedding model does not have this."
    if draft.task == "embed":
        return f"{draft} makes embeddings: it can guess no text."
    if draft == target:
        return "The model itself is no faster than it is: choose a much smaller one."
    return _other_vocabulary(target, draft)


def _other_vocabulary(target: "ModelVersion", draft: "ModelVersion") -> str:
    match is_vocabulary_shared(target, draft):
        case True:
            return ""
        case False:
            return (
                f"The tokens of {draft} are not those of {target}: choose a model of the same "
                "family, with the same tokenizer."
            )
        case None:
            return f"Nobody knows the tokens of {draft} or {target}: import them again."
