"""What the lean handler in config/inference.py resolves: files and batches under /v1/."""

from django.urls import path

from apps.batches.rest import (
    BatchCancelView,
    BatchListView,
    BatchView,
    FileContentView,
    FileListView,
    FileView,
)

urlpatterns = [
    path("v1/files", FileListView.as_view()),
    path("v1/files/<str:file_id>", FileView.as_view()),
    path("v1/files/<str:file_id>/content", FileContentView.as_view()),
    path("v1/batches", BatchListView.as_view()),
    path("v1/batches/<str:batch_id>", BatchView.as_view()),
    path("v1/batches/<str:batch_id>/cancel", BatchCancelView.as_view()),
]
