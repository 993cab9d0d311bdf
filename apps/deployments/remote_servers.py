"""Writes of remote servers. Each is one transaction with its audit event, which never has the key,
and its change stamp; whatever is at work with the old settings is replaced."""

from typing import Final, Unpack

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import F

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Conflict
from apps.core.outbound import url_parts
from apps.core.sealing import seal
from apps.core.services import change_stamp_bump, fields_set, plain
from apps.deployments.models import Deployment, RemoteServer
from apps.deployments.types import DEPLOYMENTS_STAMP, RemoteServerFields
from apps.engines.types import REMOTE_KEY_PURPOSE

MAX_KEY_CHARS: Final = 4096


@transaction.atomic
def remote_server_create(
    *, actor: Actor, api_key: str = "", **fields: Unpack[RemoteServerFields]
) -> RemoteServer:
    """Make a remote server. api_key: empty where it wants none; it cannot be read again."""
    server = RemoteServer(**fields)
    server.full_clean()
    server.api_key_sealed = _sealed(api_key)
    server.save()
    facts = {name: plain(value) for name, value in fields.items()} | {"has_key": bool(api_key)}
    event_record(action="remote_server.created", actor=actor, obj=server, changes=facts)
    return server


@transaction.atomic
def remote_server_update(
    *,
    server: RemoteServer,
    actor: Actor,
    api_key: str | None = None,
    **fields: Unpack[RemoteServerFields],
) -> RemoteServer:
    """Set the given fields. api_key: None keeps the one that there is, empty takes it away.

    Raises:
        ValidationError: a field is wrong; or the server is another one now, which must not be
            shown the key of the one before: whoever moves it has to know the key.
    """
    current = _lock(server)
    before = current.base_url
    changes = fields_set(current, fields)
    current.full_clean()
    is_moved = url_parts(before).origin != url_parts(current.base_url).origin
    if is_moved and current.api_key_sealed and api_key is None:
        text = "The key is not shown to another server: give it again, or take it away."
        raise ValidationError({"base_url": text})
    if api_key is not None and (api_key or current.api_key_sealed):
        current.api_key_sealed = _sealed(api_key)
        changes["api_key"] = ["...", "replaced" if api_key else "taken away"]
    if changes:
        current.save()
        event_record(action="remote_server.updated", actor=actor, obj=current, changes=changes)
        Deployment.objects.filter(remote=current).update(generation=F("generation") + 1)
        change_stamp_bump(DEPLOYMENTS_STAMP)
    return current


@transaction.atomic
def remote_server_delete(*, server: RemoteServer, actor: Actor) -> None:
    """Forget a server and its key; raises Conflict while a deployment leads to it."""
    current = _lock(server)
    event_record(action="remote_server.deleted", actor=actor, obj=current)
    try:
        current.delete()
    except models.ProtectedError as error:
        users = ", ".join(sorted(str(obj) for obj in error.protected_objects)[:5])
        raise Conflict(f"Remote server {current} is still used by: {users}.") from error


def _sealed(api_key: str) -> str:
    if not api_key:
        return ""
    if len(api_key) > MAX_KEY_CHARS or not api_key.isascii() or not api_key.isprintable():
        text = f"A key has at most {MAX_KEY_CHARS} printable ASCII characters."
        raise ValidationError({"api_key": text})
    return seal(api_key.encode(), purpose=REMOTE_KEY_PURPOSE)


def _lock(server: RemoteServer) -> RemoteServer:
    return RemoteServer.objects.select_for_update().get(pk=server.pk)
