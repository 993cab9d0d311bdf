"""Health over HTTP, for whoever decides to restart this process or to send it traffic."""

import os

from django.http import HttpRequest, JsonResponse

from apps.monitoring.selectors import readiness


async def healthz(request: HttpRequest) -> JsonResponse:
    """The process turns its event loop; says nothing of what it depends on."""
    return JsonResponse({"status": "ok", "pid": os.getpid()})


async def readyz(request: HttpRequest) -> JsonResponse:
    """A chat request would be answered: 200, or 503 with the reasons."""
    found = await readiness()
    body = {
        "status": "ready" if found.is_ready else "not ready",
        "process": found.process,
        "database": found.database,
        "deployments": found.deployments,
    }
    return JsonResponse(body, status=200 if found.is_ready else 503)
