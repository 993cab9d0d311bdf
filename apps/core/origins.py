"""From which pages a browser's session may be used over a WebSocket."""

from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from apps.core.exceptions import PermissionDenied


def check_origin(headers: dict[bytes, bytes]) -> None:
    """Refuse a page of another site that rides on the browser's session cookie.

    Raises:
        PermissionDenied: the Origin is missing, or is neither the host nor a trusted one.
    """
    origin = headers.get(b"origin", b"").decode("latin1")
    host = headers.get(b"host", b"").decode("latin1")
    domain, _ = split_domain_port(host)
    allowed = settings.ALLOWED_HOSTS or ["localhost", "127.0.0.1", "[::1]"]
    is_same = urlsplit(origin).netloc.lower() == host.lower() and validate_host(domain, allowed)
    if not origin or not (is_same or origin in settings.CSRF_TRUSTED_ORIGINS):
        raise PermissionDenied("This origin may not use the session.", code="origin_not_allowed")
