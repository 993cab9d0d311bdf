"""The platform's own package. Tasks that rooms share belong to the Celery application here."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
