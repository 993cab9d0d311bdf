"""Somebody at a browser comes in by single sign-on."""

from typing import Any
from urllib.parse import urlsplit

from django.test import Client

from apps.rbac.models import GroupMapping
from tests.factories import GroupMappingFactory
from tests.identity_provider.running import IdentityProvider
from tests.integration.sign_in.people import INDEX, said

START = "/admin/login/sso/"
LINK = "/admin/account/single-sign-on/"


def mapping(group: str, role: str, tenant: Any = None) -> GroupMapping:
    made: GroupMapping = GroupMappingFactory(group=group, role=role, tenant=tenant)
    return made


def come_in(idp: IdentityProvider, subject: str, client: Client, start: str = START) -> Any:
    """Press the button, sign in there, and come back; return our last answer."""
    there = client.get(start)
    assert there.status_code == 302, said(there)
    return come_back(idp, subject, client, there["Location"])


def come_back(idp: IdentityProvider, subject: str, client: Client, url: str) -> Any:
    back = urlsplit(idp.sign_in(url, subject))
    assert back.path == "/admin/login/sso/callback/"
    return client.get(f"{back.path}?{back.query}")


def is_in(client: Client) -> bool:
    return bool(client.get(INDEX).status_code == 200)
