"""The ASGI entry point: which handler a path belongs to. Inference and health take the lean way;
the admin and everything else take Django's own handler with its middleware."""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.development")

from django.core.asgi import get_asgi_application

_django: Any = get_asgi_application()  # loads the apps; what follows needs them

from channels.auth import AuthMiddlewareStack  # noqa: E402

from apps.console.consumers import LiveConsumer  # noqa: E402
from apps.gateway.websocket.consumers import StreamConsumer  # noqa: E402
from config.inference import LeanHandler, Receive, Scope, Send  # noqa: E402

# Where servers of models have them, which is not under /v1/.
TOKENIZER_PATHS = frozenset({"/tokenize", "/detokenize"})
BATCH_PATHS = ("/v1/files", "/v1/batches")
MANAGEMENT_PATH = "/v1/manage/"
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})

_inference = LeanHandler("apps.gateway.urls")
_batches = LeanHandler("apps.batches.urls")
_management = LeanHandler("apps.management.urls")
_health = LeanHandler("apps.monitoring.urls")
_sockets: dict[str, Any] = {
    "/v1/stream": AuthMiddlewareStack(StreamConsumer.as_asgi()),
    "/admin/live": AuthMiddlewareStack(LiveConsumer.as_asgi()),
}


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Dispatch by protocol and path."""
    if scope["type"] == "websocket":
        if (socket := _sockets.get(scope["path"])) is not None:
            await socket(scope, receive, send)
        else:
            await send({"type": "websocket.close"})
    elif scope["path"].startswith(BATCH_PATHS):
        await _batches(scope, receive, send)
    elif scope["path"].startswith(MANAGEMENT_PATH):
        await _management(scope, receive, send)
    elif _is_inference(scope["path"]):
        await _inference(scope, receive, send)
    elif scope["path"] in HEALTH_PATHS:
        await _health(scope, receive, send)
    else:
        await _django(scope, receive, send)


def _is_inference(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/") or path in TOKENIZER_PATHS
