"""All paths of the public API, for its document; each handler in asgi.py resolves its own part."""

from apps.batches.urls import urlpatterns as batches
from apps.gateway.urls import urlpatterns as gateway
from apps.management.urls import urlpatterns as management

urlpatterns = [*gateway, *batches, *management]
