"""How far each step of a guide is, by its rows. No queries."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from django.template.defaultfilters import filesizeformat

from apps.console.guide.subject import Subject
from apps.deployments.types import LIVE_STATE_TONES
from apps.registry.selectors import stage_refusal, verification_progress
from apps.registry.types import Stage, VerificationStatus

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion

Mark = Literal["done", "busy", "bad", "next", "later"]

_OF_TONE: Final[dict[str, Mark]] = {
    "good": "done",
    "busy": "busy",
    "warn": "busy",
    "bad": "bad",
    "off": "next",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """said: how far it is, in a line."""

    key: str
    title: str
    mark: Mark
    said: str

    @property
    def template(self) -> str:
        return f"console/guide/{self.key}.html"


def steps_of(subject: Subject) -> tuple[Step, ...]:
    return (
        _import(subject),
        _verify(subject),
        _deploy(subject),
        _route(subject),
        _watch(subject),
    )


def _import(subject: Subject) -> Step:
    def step(mark: Mark, said: str) -> Step:
        return Step(key="import", title="Import", mark=mark, said=said)

    if subject.version is not None:
        return step("done", _version_said(subject.version))
    if subject.job is None:
        return step("next", "A file or folder on the server, or an upload.")
    if subject.job.is_open:
        return step("busy", subject.job.progress)
    return step("bad", f"{subject.job.get_status_display()}. {subject.job.error}".strip())


def _verify(subject: Subject) -> Step:
    def step(mark: Mark, said: str) -> Step:
        return Step(key="verify", title="Verify", mark=mark, said=said)

    version, run = subject.version, subject.run
    if version is None:
        return step("later", "Its files are compared, it is asked, and measured.")
    if run is not None and run.is_open:
        return step("busy", verification_progress(run))
    if version.stage == Stage.RETIRED:
        return step("bad", "It is retired: make it a draft first.")
    if version.stage != Stage.DRAFT:
        return step("done", f"{version.get_stage_display()}.")
    if run is not None and run.status == VerificationStatus.FAILED:
        return step("bad", f"It did not pass: {run.error or 'see its checks'}")
    return step("next", "Its files are compared, it is asked, and measured.")


def _deploy(subject: Subject) -> Step:
    def step(mark: Mark, said: str) -> Step:
        return Step(key="deploy", title="Deploy", mark=mark, said=said)

    if subject.version is None:
        return step("later", "Where it runs, and with how much memory.")
    if subject.live is not None:
        live = subject.live
        said = f"{subject.deployment}: {live.n_ready} of {live.n_replicas} ready."
        return step(_OF_TONE[LIVE_STATE_TONES[live.word]], said)
    if refusal := stage_refusal(subject.version):
        return step("later", refusal)
    is_looked_at = subject.version.stage != Stage.DRAFT
    return step("next" if is_looked_at else "later", "Where it runs, and with how much memory.")


def _route(subject: Subject) -> Step:
    def step(mark: Mark, said: str) -> Step:
        return Step(key="route", title="Route", mark=mark, said=said)

    if subject.deployment is None:
        return step("later", "Under which name it is asked, and for which share.")
    if subject.route is None or subject.target is None:
        return step("next", "Under which name it is asked, and for which share.")
    if not subject.is_routed:
        return step("next", f"{subject.route} leads to it with weight 0.")
    return step("done", f"{subject.route} leads to it.")


def _watch(subject: Subject) -> Step:
    def step(mark: Mark, said: str) -> Step:
        return Step(key="watch", title="Watch", mark=mark, said=said)

    if subject.route is None or subject.target is None:
        return step("later", "How requests are shared; take traffic from the one before.")
    return step("busy", "How requests are shared; take traffic from the one before.")


def _version_said(version: "ModelVersion") -> str:
    size = filesizeformat(version.size_bytes)
    return f"{version}: {version.architecture}, {version.dtype}, {size}."
