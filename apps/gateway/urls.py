"""What the lean handler in config/inference.py resolves: what is under /v1/, and two beside it."""

from django.urls import path

from apps.gateway.rest.auth_tokens import KeySetView, RefreshView, RevokeView, TokenView
from apps.gateway.rest.chat import ChatCompletionView
from apps.gateway.rest.completions import CompletionView
from apps.gateway.rest.embeddings import EmbeddingView
from apps.gateway.rest.feedback import EventView, FeedbackView
from apps.gateway.rest.messages import CountTokensView, MessagesView
from apps.gateway.rest.openapi import DocumentView
from apps.gateway.rest.responses import ResponsesView
from apps.gateway.rest.tokenizing import DetokenizeView, TokenizeView
from apps.gateway.rest.views import ModelListView, ModelView

urlpatterns = [
    path("v1/chat/completions", ChatCompletionView.as_view()),
    path("v1/completions", CompletionView.as_view()),
    path("v1/responses", ResponsesView.as_view()),
    path("v1/messages", MessagesView.as_view()),
    path("v1/messages/count_tokens", CountTokensView.as_view()),
    path("v1/embeddings", EmbeddingView.as_view()),
    path("v1/feedback", FeedbackView.as_view()),
    path("v1/events", EventView.as_view()),
    path("tokenize", TokenizeView.as_view()),
    path("detokenize", DetokenizeView.as_view()),
    path("v1/auth/token", TokenView.as_view()),
    path("v1/auth/token/refresh", RefreshView.as_view()),
    path("v1/auth/token/revoke", RevokeView.as_view()),
    path("v1/auth/jwks.json", KeySetView.as_view()),
    path("v1/openapi.json", DocumentView.as_view()),
    path("v1/models", ModelListView.as_view()),
    path("v1/models/<path:name>", ModelView.as_view()),
]
