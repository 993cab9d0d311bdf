"""Every URL that exists, so that a new one cannot be forgotten."""

from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, get_resolver


def walk(urlconf: str) -> Iterator[tuple[str, URLPattern]]:
    """Yield each pattern with its whole route, such as ``admin/rbac/role/<path:object_id>/``."""
    yield from _walk(get_resolver(urlconf), "")


def _walk(resolver: Any, prefix: str) -> Iterator[tuple[str, URLPattern]]:
    for each in resolver.url_patterns:
        route = prefix + str(each.pattern)
        if isinstance(each, URLPattern):
            yield route, each
        else:
            yield from _walk(each, route)
