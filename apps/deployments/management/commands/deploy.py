"""``manage.py deploy list|start|stop|drain|restart|scale|set``: deployments without the admin."""

import time
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import SYSTEM
from apps.core.exceptions import AppError
from apps.deployments.models import Deployment
from apps.deployments.selectors import deployment_watched, deployments_all, live_state
from apps.deployments.services import (
    deployment_drain,
    deployment_restart,
    deployment_start,
    deployment_stop,
    deployment_update,
)
from apps.deployments.types import DeploymentFields
from apps.registry.selectors import model_version_named

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion

_SERVICES = {
    "start": (deployment_start, "is told to run."),
    "stop": (deployment_stop, "stops."),
    "restart": (deployment_restart, "gets new engines."),
}
_CHOICES: Final = {
    "kv_cache_dtype": (Deployment.KVCacheDtype, "what the KV cache holds; fp8 needs a GPU"),
    "speculation": (Deployment.Speculation, "what guesses the next tokens"),
    "attention": (Deployment.Attention, "what attends on a GPU"),
}
_ENGINE_OPTIONS: Final = {
    "tensor_parallel": ("N", "GPUs of one machine that hold a replica together, 1 to 8"),
    "sleep_after_s": ("SECONDS", "without work until the GPU's memory is given back, or none"),
    "host_kv_cache_bytes": ("BYTES", "host memory for blocks that the GPU evicts, or none"),
    "disk_kv_cache_bytes": ("BYTES", "disk for those that host memory evicts, or none"),
}
_DRAFT: Final = "draft_version"
_NONE: Final = "none"
_LOOK_S: Final = 0.25


class Command(BaseCommand):
    help = "List, start, stop, drain, restart or scale deployments, or set how their engines run."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="what runs, beside what should")
        for verb in _SERVICES:
            verbs.add_parser(verb).add_argument("name")
        drain = verbs.add_parser("drain", help="let it finish, and wait until it has stopped")
        drain.add_argument("name")
        drain.add_argument("--timeout-s", type=float, default=600.0, help="the longest wait")
        scale = verbs.add_parser("scale", help="set how many replicas may run")
        scale.add_argument("name")
        scale.add_argument("--min", type=int, help="so many always run")
        scale.add_argument("--max", type=int, help="as many as keep requests from waiting")
        scale.add_argument("--target-wait-ms", type=int, help="the longest that one should wait")

        engine = verbs.add_parser("set", help="set how its engines run, which starts them anew")
        engine.add_argument("name")
        for field, (known, said) in _CHOICES.items():
            engine.add_argument(_option(field), choices=known.values, help=said)
        for field, (metavar, text) in _ENGINE_OPTIONS.items():
            engine.add_argument(_option(field), type=_number, metavar=metavar, help=text)
        engine.add_argument(
            "--draft-version",
            metavar="NAME:NUMBER",
            help="a much smaller model with the same tokenizer that guesses for this one, or none",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] == "list":
            for deployment in deployments_all():
                self.stdout.write(_line(deployment))
            return
        deployment = _named(options["name"])
        try:
            if options["verb"] == "scale":
                self._scale(deployment, options)
            elif options["verb"] == "set":
                self._set(deployment, options)
            elif options["verb"] == "drain":
                self._drain(deployment, timeout_s=options["timeout_s"])
            else:
                service, said = _SERVICES[options["verb"]]
                service(deployment=deployment, actor=SYSTEM)
                self.stdout.write(f"{deployment} {said}")
        except ValidationError as error:
            wrong = "; ".join(
                f"{field}: {' '.join(texts)}" for field, texts in error.message_dict.items()
            )
            raise CommandError(wrong) from None
        except AppError as error:
            raise CommandError(error.message) from error

    def _drain(self, deployment: Deployment, *, timeout_s: float) -> None:
        """It gets no new requests, and its engines finish those that they have."""
        deployment_drain(deployment=deployment, actor=SYSTEM)
        until_s = time.monotonic() + timeout_s
        while (state := live_state(deployment_watched(str(deployment.pk)))).word != "Stopped":
            if time.monotonic() >= until_s:
                raise CommandError(
                    f"{deployment} is told to drain, and after {timeout_s:g} s it is "
                    f"{state.word.lower()}; `deploy list` shows it. Is the agent running?"
                )
            time.sleep(_LOOK_S)
        self.stdout.write(f"{deployment} has stopped.")

    def _scale(self, deployment: Deployment, options: dict[str, Any]) -> None:
        names = {"min_replicas": "min", "max_replicas": "max", "target_wait_ms": "target_wait_ms"}
        fields = {
            field: options[name] for field, name in names.items() if options[name] is not None
        }
        if not fields:
            raise CommandError("give --min, --max or --target-wait-ms")
        found = _updated(deployment, fields)
        self.stdout.write(
            f"{found} runs {found.min_replicas} to {found.max_replicas} replicas, "
            f"{found.n_replicas} now."
        )

    def _set(self, deployment: Deployment, options: dict[str, Any]) -> None:
        names = (*_CHOICES, *_ENGINE_OPTIONS, _DRAFT)
        given = {name: options[name] for name in names if options[name] is not None}
        if not given:
            known = ", ".join(map(_option, names))
            raise CommandError(f"give one of {known}")
        fields = {name: None if value == _NONE else value for name, value in given.items()}
        if fields.get(_DRAFT) is not None:
            fields[_DRAFT] = _version(given[_DRAFT])
        found = _updated(deployment, fields)
        said = ", ".join(
            f"{name} {_NONE if (value := getattr(found, name)) is None else value}"
            for name in names
        )
        self.stdout.write(f"{found}: {said}.")


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _number(text: str) -> int | str:
    """Read a whole number, or ``none`` for what is to be empty. Raises ValueError."""
    return _NONE if text == _NONE else int(text)


def _version(text: str) -> "ModelVersion":
    version = model_version_named(text)
    if version is None:
        raise CommandError(f"{_DRAFT}: there is no version {text}; `versions` lists those that are")
    return version


def _updated(deployment: Deployment, fields: dict[str, Any]) -> Deployment:
    return deployment_update(
        deployment=deployment,
        actor=SYSTEM,
        **DeploymentFields(**fields),  # type: ignore[typeddict-item]
    )


def _named(name: str) -> Deployment:
    deployment = Deployment.objects.filter(name=name).first()
    if deployment is None:
        raise CommandError(f"there is no deployment {name}; `deploy list` shows those that are")
    return deployment


def _line(deployment: Deployment) -> str:
    state = live_state(deployment)
    places = sorted(
        {str(device) for each in deployment.replicas.all() for device in each.devices.all()}
    )
    is_native = deployment.backend == Deployment.Backend.NATIVE
    draft = deployment.draft_version
    return (
        f"{deployment.name:<24} {state.word:<18} {state.n_ready} of {state.n_replicas} ready, "
        f"{deployment.min_replicas} to {deployment.max_replicas}  {', '.join(places) or '-'}"
        f"{'' if is_native else f'  on {deployment.get_backend_display()}'}"
        f"{'' if draft is None else f'  guessed for by {draft}'}"
        f"{'  ' + state.last_error if state.last_error else ''}"
    )
