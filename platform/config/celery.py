"""The Celery application. Settings named CELERY_… are its own; tasks are in a room's tasks.py."""

import os
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.signals import setup_logging
from kombu.transport import TRANSPORT_ALIASES

from apps.core.tenancy import every_tenant

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.development")


class PlatformTask(Task):  # type: ignore[type-arg]
    """What is done in the background is done for whichever tenant."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with every_tenant("work in the background"):
            return super().__call__(*args, **kwargs)


TRANSPORT_ALIASES["filesystem"] = "config.broker:Transport"

app = Celery("nano-llm", task_cls=PlatformTask)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def _leave_logging(**kwargs: Any) -> None:
    """Django's settings decide how records look and where they go."""


@app.on_after_configure.connect
def _make_folders(sender: Celery, **kwargs: Any) -> None:
    """A broker of files wants its folders to be there."""
    for name in ("data_folder_in", "control_folder"):
        if folder := sender.conf.broker_transport_options.get(name):
            for directory in (Path(folder).parent, Path(folder)):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
