"""How Celery behaves, whatever its broker. Messages only wake workers: rows are the truth, so that
nothing here promises delivery and no results are kept."""

from typing import Final

from celery.schedules import crontab

CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_TIMEOUT = 3

# A batch, an import or a verification keeps a worker for a minute or longer; what looks after
# traffic is short, and waits for none of them where a watcher runs.
LONG_QUEUE: Final = "celery"
WATCH_QUEUE: Final = "watch"
CELERY_TASK_DEFAULT_QUEUE = LONG_QUEUE
CELERY_TASK_ROUTES = {
    name: {"queue": WATCH_QUEUE}
    for name in ("rollouts.*", "experiments.*", "metering.*", "gateway.forget")
}

REAP_EVERY_S = 5.0
ROLL_UP_EVERY_S = 10.0
ROLLOUTS_EVERY_S = 5.0
EXPERIMENTS_EVERY_S = 10.0
JUDGES_EVERY_S = 10.0
FORGET_EVERY_S = 300.0
# In memory: a schedule that is all here needs no file.
CELERY_BEAT_SCHEDULER = "celery.beat:Scheduler"
CELERY_BEAT_SCHEDULE = {
    "batches.reap": {
        "task": "batches.reap",
        "schedule": REAP_EVERY_S,
        "options": {"expires": REAP_EVERY_S},
    },
    "verification.reap": {
        "task": "verification.reap",
        "schedule": REAP_EVERY_S,
        "options": {"expires": REAP_EVERY_S},
    },
    "registry.reap": {
        "task": "registry.reap",
        "schedule": REAP_EVERY_S,
        "options": {"expires": REAP_EVERY_S},
    },
    # At a time of day, not after a span: beat's memory begins anew whenever it starts.
    "console.prune": {
        "task": "console.prune",
        "schedule": crontab(hour="3", minute="17"),
        "options": {"expires": 3600.0},
    },
    "metering.roll_up": {
        "task": "metering.roll_up",
        "schedule": ROLL_UP_EVERY_S,
        # Without a watcher the one worker may be at a batch for a minute.
        "options": {"expires": 12 * ROLL_UP_EVERY_S},
    },
    "rollouts.tick": {
        "task": "rollouts.tick",
        "schedule": ROLLOUTS_EVERY_S,
        # As above: the look that a worker has time for comes late, and is not lost.
        "options": {"expires": 24 * ROLLOUTS_EVERY_S},
    },
    "experiments.count": {
        "task": "experiments.count",
        "schedule": EXPERIMENTS_EVERY_S,
        "options": {"expires": 12 * EXPERIMENTS_EVERY_S},
    },
    "gateway.judge": {
        "task": "gateway.judge",
        "schedule": JUDGES_EVERY_S,
        "options": {"expires": 12 * JUDGES_EVERY_S},
    },
    "gateway.forget": {
        "task": "gateway.forget",
        "schedule": FORGET_EVERY_S,
        "options": {"expires": FORGET_EVERY_S},
    },
}
