"""Writes of what is said of versions, and of their stages."""

from collections.abc import Collection
from typing import Any, Final, Unpack

from django.core.exceptions import ValidationError
from django.db import models, transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.access import Access
from apps.core.exceptions import PermissionDenied
from apps.core.services import fields_set
from apps.registry.exceptions import StageNotDeployable, VersionInUse
from apps.registry.models import (
    ModelVersion,
    RegisteredModel,
    StageMove,
    VerificationRun,
    VersionTag,
)
from apps.registry.selectors import stage_refusal
from apps.registry.stages import move_permission
from apps.registry.storing import folder_loosen
from apps.registry.types import Stage, VersionFields

_MOST_TAGS: Final = 20


@transaction.atomic
def model_version_stage_move(
    *, version: ModelVersion, stage: Stage, by: Access, actor: Actor, reason: str = ""
) -> ModelVersion:
    """Move a version to another stage, by hand. by: what whoever does it may.

    Raises:
        StageMoveRefused: from where it is now there is no such move, or none by hand.
        PermissionDenied: they may not, from where it is now.
    """
    current = version_lock(version)
    needed = move_permission(Stage(current.stage), stage)
    if not by.may(needed):
        raise PermissionDenied(
            f"To make {current} {stage}, which is {current.stage}, you need {needed}."
        )
    return stage_set(current, stage=stage, actor=actor, reason=reason)


def stage_set(
    version: ModelVersion, *, stage: Stage, actor: Actor, reason: str = ""
) -> ModelVersion:
    """Write a move that was found good, in the transaction that holds the version's row."""
    move = StageMove(
        version=version,
        before=version.stage,
        after=stage,
        reason=reason.strip(),
        actor_label=actor.label[:200],
    )
    move.full_clean()
    move.save()
    version.stage = stage
    version.save(update_fields=["stage", "updated_at"])
    event_record(
        action="model_version.stage_moved",
        actor=actor,
        obj=version,
        changes={"stage": [move.before, move.after], "reason": move.reason},
    )
    return version


@transaction.atomic
def model_version_describe(
    *, version: ModelVersion, actor: Actor, **fields: Unpack[VersionFields]
) -> ModelVersion:
    """Set what a person writes of a version.

    Raises:
        ValidationError: a field is wrong; its name leads to what was expected.
    """
    current = version_lock(version)
    given: dict[str, Any] = dict(fields)
    tags = given.pop("tags", None)
    changes = fields_set(current, given)
    if "model_card" in changes:  # too long for an audit trail
        changes["model_card"] = [f"{len(text):,} characters" for text in changes["model_card"]]
    if changes:
        _lineage_check(current)
        current.full_clean()
        current.save()
    if tags is not None and (tag_changes := _tags_set(current, names=tags)):
        changes["tags"] = tag_changes
    if changes:
        event_record(action="model_version.described", actor=actor, obj=current, changes=changes)
    return current


@transaction.atomic
def model_version_delete(*, version: ModelVersion, actor: Actor) -> None:
    """Forget a version, and remove its files once that is committed. Its number is not given again.

    Raises:
        VersionInUse: a deployment is of it, another version was made of it, it is being verified,
            or it is approved.
    """
    current = version_lock(version)
    if current.stage == Stage.APPROVED:
        raise VersionInUse(f"{current} is approved: withdraw that first.", param="stage")
    if current.verifications.filter(status__in=VerificationRun.OPEN).exists():
        raise VersionInUse(f"{current} is being verified.")
    event_record(
        action="model_version.deleted",
        actor=actor,
        obj=current,
        changes={"path": current.path, "manifest_sha256": current.manifest_sha256},
    )
    path, model = current.path, RegisteredModel.objects.select_for_update().get(pk=current.model_id)
    model.last_deleted = max(model.last_deleted, current.version)
    model.save(update_fields=["last_deleted", "updated_at"])
    try:
        current.delete()
    except models.ProtectedError as error:
        users = ", ".join(sorted(str(obj) for obj in error.protected_objects)[:5])
        raise VersionInUse(f"{version} is still used by: {users}.") from error
    folder_loosen(path)


@transaction.atomic
def deployable_check(version: ModelVersion, *, param: str = "model_version") -> None:
    """Hold the version's row, so that its stage stays, for the caller's transaction. param: the
    field of a deployment that names it.

    Raises:
        StageNotDeployable: no deployment may be made or started of a version in its stage.
    """
    rows = ModelVersion.objects.select_for_update(of=("self",)).select_related("model")
    if refusal := stage_refusal(rows.get(pk=version.pk)):
        raise StageNotDeployable(refusal, param=param)


def version_lock(version: ModelVersion) -> ModelVersion:
    """Return the row as it is, and hold it for the caller's transaction."""
    rows = ModelVersion.objects.select_for_update(of=("self",)).select_related("model", "parent")
    return rows.get(pk=version.pk)


def _lineage_check(version: ModelVersion) -> None:
    if (version.parent is None) != (not version.lineage):
        text = "Give both the version that it was made of and how, or neither."
        raise ValidationError({"lineage": text})
    ancestor, seen = version.parent, set()
    while ancestor is not None and ancestor.pk not in seen:
        if ancestor.pk == version.pk:
            raise ValidationError({"parent": f"{version.parent} was itself made of {version}."})
        seen.add(ancestor.pk)
        ancestor = ancestor.parent


def _tags_set(version: ModelVersion, *, names: Collection[str]) -> list[list[str]]:
    """Bring the rows in line; return the names before and after, nothing where they are equal."""
    before, after = sorted(version.tag_names), sorted(set(names))
    if before == after:
        return []
    if len(after) > _MOST_TAGS:
        raise ValidationError({"tags": f"At most {_MOST_TAGS} tags, not {len(after)}."})
    for name in set(after) - set(before):
        tag = VersionTag(version=version, name=name)
        try:
            tag.full_clean()
        except ValidationError as error:
            raise ValidationError({"tags": f"{name!r}: {' '.join(error.messages)}"}) from None
        tag.save()
    version.tags.exclude(name__in=after).delete()
    return [before, after]
