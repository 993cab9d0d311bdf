"""What the lean handler in config/inference.py resolves: the paths under /v1/."""

from django.urls import path

from apps.gateway.rest.views import ChatCompletionView, CompletionView, ModelListView, ModelView

urlpatterns = [
    path("v1/chat/completions", ChatCompletionView.as_view()),
    path("v1/completions", CompletionView.as_view()),
    path("v1/models", ModelListView.as_view()),
    path("v1/models/<path:name>", ModelView.as_view()),
]
