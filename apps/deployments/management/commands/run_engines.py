"""``manage.py run_engines``: the engine agent of this machine."""

import asyncio
import signal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from apps.deployments.reconciler import Reconciler
from apps.engines.exceptions import AgentError
from apps.engines.services import agent_paths, var_lock


class Command(BaseCommand):
    help = "Start, watch, restart and stop engine processes as the deployments say."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with var_lock(settings.VAR_DIR / "agent.lock", holder="engine agent"):
                asyncio.run(_run(Reconciler(paths=agent_paths(settings.VAR_DIR))))
        except AgentError as error:
            raise CommandError(str(error)) from error


async def _run(reconciler: Reconciler) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal does not wait for the drain."""
    n_signals = 0

    def on_signal() -> None:
        nonlocal n_signals
        n_signals += 1
        reconciler.stop()
        if n_signals > 1:
            reconciler.agent.kill()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await reconciler.run()
