"""``manage.py run_engines``: the engine agent of this machine."""

import asyncio
import os
import signal
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.core.files import LockHeld, var_lock
from apps.deployments.reconciler import Reconciler
from apps.engines.exceptions import AgentError
from apps.engines.services import Timings, agent_paths

_DRAIN_MOST_S = 40.0


class Command(BaseCommand):
    help = "Start, watch, restart and stop engine processes as the deployments say."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--exit-with-parent", action="store_true", help="drain and stop when stdin ends"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        lock = settings.VAR_DIR / "agent.lock"
        # A parent that was killed and came back: the agent of before still drains.
        wait_s = _DRAIN_MOST_S if options["exit_with_parent"] else 0.0
        try:
            with var_lock(lock, holder="engine agent", wait_s=wait_s):
                timings = Timings(
                    ping_deadline_s=settings.ENGINE_PING_DEADLINE_S,
                    breaker_crashes=settings.ENGINE_CRASHES,
                    breaker_pause_s=settings.ENGINE_CRASH_PAUSE_S,
                )
                reconciler = Reconciler(paths=agent_paths(settings.VAR_DIR), timings=timings)
                asyncio.run(_run(reconciler, watch_stdin=options["exit_with_parent"]))
        except (AgentError, LockHeld) as error:
            raise CommandError(str(error)) from error


async def _run(reconciler: Reconciler, *, watch_stdin: bool) -> None:
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
    if watch_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: _on_stdin(reconciler))
    await reconciler.run()


def _on_stdin(reconciler: Reconciler) -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        reconciler.stop()
