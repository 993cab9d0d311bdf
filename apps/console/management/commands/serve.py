"""``manage.py serve``: the whole platform on one machine, in one command."""

import asyncio
import os
import signal
import socket
import sys
from argparse import ArgumentTypeError
from contextlib import ExitStack
from typing import Any, NoReturn

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections

from apps.console.bootstrap import Access, BootstrapError, bootstrap
from apps.console.launcher import Launcher, LaunchError, LaunchOptions, port_claim
from apps.core.files import LockHeld, var_lock

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class Command(BaseCommand):
    help = "Set up what is missing, then run the engine agent and the server until stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
        parser.add_argument("--port", type=_port, default=8000, help="port to listen on")

    def handle(self, *args: Any, **options: Any) -> None:
        os.umask(0o077)  # the database, logs and models are nobody else's to read
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
        host, port = options["host"], options["port"]
        try:
            with ExitStack() as stack:
                listener = stack.enter_context(port_claim(host, port))
                stack.enter_context(var_lock(settings.VAR_DIR / "serve.lock", holder="server"))
                self._serve(listener, host=host, port=port)
        except (BootstrapError, LaunchError, LockHeld) as error:
            raise CommandError(str(error)) from error
        except (OSError, DatabaseError) as error:
            raise CommandError(f"VAR={settings.VAR_DIR} or the database: {error}") from error
        except KeyboardInterrupt:
            raise CommandError("stopped before it was ready", returncode=130) from None

    def _serve(self, listener: socket.socket, *, host: str, port: int) -> None:
        _hosts_allow(host)
        near = _WILDCARDS.get(host, host)
        origin = f"[{near}]:{port}" if ":" in near else f"{near}:{port}"
        self._say("Preparing the database")
        call_command("migrate", verbosity=0, interactive=False)
        settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # empty here: finders serve
        file = settings.VAR_DIR / "bootstrap.json"
        access = bootstrap(
            file=file,
            downloads=(settings.VAR_DIR / "downloads", settings.BASE_DIR / "var" / "downloads"),
            origin=origin,
            report=self._say,
        )
        connections.close_all()
        self._say("Starting the engine agent and the server")
        launcher_options = LaunchOptions(
            listener=listener,
            host=near,
            port=port,
            access=access,
            var_dir=settings.VAR_DIR,
            root_dir=settings.BASE_DIR,
            drain_s=settings.GATEWAY_DRAIN_S,
        )
        asyncio.run(
            Launcher(
                launcher_options,
                report=self._say,
                banner=lambda model: banner(access, origin=origin, file=str(file), model=model),
            ).run()
        )
        self._say("Stopped.")

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def banner(access: Access, *, origin: str, file: str, model: str) -> str:
    """What an operator needs to go on; the command in it works when pasted."""
    password = access.admin_password or "(the one that you set)"
    rule = "─" * 78
    return f"""
{rule}
  {settings.PRODUCT_NAME} is ready.

  Admin         http://{origin}/admin/
  Log in as     {access.admin_user}
  Password      {password}

  API base URL  {access.base_url}
  API token     {access.api_token}
  WebSocket     {access.ws_url}

{_try_it(access, model=model) if model else "  No model answers: the admin says why."}

  The same is in {file}.
  Ctrl-C stops everything.
{rule}"""


def _try_it(access: Access, *, model: str) -> str:
    return f"""  Try it:

curl {access.base_url}/chat/completions \\
  -H "Authorization: Bearer {access.api_token}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "temperature": 0,
       "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'"""


def _hosts_allow(host: str) -> None:
    """Let the admin be reached by the address that it listens on; ALLOWED_HOSTS overrides."""
    if "ALLOWED_HOSTS" in os.environ or host in settings.ALLOWED_HOSTS:
        return
    names = [*settings.ALLOWED_HOSTS, socket.gethostname(), socket.getfqdn()]
    if host in _WILDCARDS:
        names += socket.gethostbyname_ex(socket.gethostname())[2]
    else:
        names.append(f"[{host}]" if ":" in host else host)
    os.environ["ALLOWED_HOSTS"] = ",".join(dict.fromkeys(names))


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
