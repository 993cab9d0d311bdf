"""What else than deployments pages are renewed with: an import, a verification, how a route's
requests are shared, how a rollout goes. Read for all pages together, and for those only that
somebody looks at."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final
from urllib.parse import parse_qs

from apps.console.watching import Words
from apps.core.access import Access
from apps.experiments.selectors import ExperimentNews, experiments_news
from apps.registry.selectors import import_jobs_of, verification_progress, verifications_of
from apps.rollouts.selectors import rollout_report
from apps.rollouts.types import RolloutReport
from apps.routing.selectors import route_splits
from apps.routing.types import SEE_SPLIT, RouteSplit

JOB: Final = "job"
RUN: Final = "run"
ROUTE: Final = "route"
EXPERIMENT: Final = "experiment"
ROLLOUT: Final = "rollout"
# What somebody has to hold to be told of a topic of that kind.
_PERMISSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    JOB: ("registry.view_importjob",),
    RUN: ("registry.view_verificationrun",),
    ROUTE: SEE_SPLIT,
    EXPERIMENT: ("experiments.view_experiment",),
    ROLLOUT: ("rollouts.view_rollout", "routing.view_route"),
}
_STATE_TONES: Final = {"draft": "off", "running": "good", "stopped": "busy"}
_MOST_DIGITS: Final = 18

Topic = tuple[str, int]  # its kind, and the key of its row


def topics_in(query: bytes) -> frozenset[Topic]:
    """Return what a page asks for: ``job=5&route=2``, one of a kind."""
    asked = parse_qs(query.decode("latin1"))
    numbers = ((kind, number_in(asked.get(kind, [""])[0])) for kind in _PERMISSIONS)
    return frozenset((kind, number) for kind, number in numbers if number is not None)


def number_in(text: str) -> int | None:
    """Return the key of a row that a text is; None where it is none."""
    is_key = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return int(text) if is_key else None


def kinds_open_to(access: Access) -> frozenset[str]:
    """Return of which kinds somebody is told."""
    return frozenset(
        kind for kind, needed in _PERMISSIONS.items() if all(access.may(each) for each in needed)
    )


def topics_words(topics: Collection[Topic], *, now: datetime) -> dict[Topic, Words]:
    """Return the words of those that there are, in a query for the imports, one for the
    verifications, six for the routes, two for the experiments and two for each rollout, where such
    are asked for."""
    words: dict[Topic, Words] = {}
    if jobs := _keys(topics, JOB):
        for job in import_jobs_of(jobs):
            words[JOB, job.pk] = _progress_words(
                f"j{job.pk}", is_open=job.is_open, progress=job.progress, percent=job.percent
            )
    if runs := _keys(topics, RUN):
        for run in verifications_of(runs):
            words[RUN, run.pk] = _progress_words(
                f"v{run.pk}",
                is_open=run.is_open,
                progress=verification_progress(run),
                percent=run.percent,
            )
    if routes := _keys(topics, ROUTE):
        for split in route_splits(routes, now=now):
            words[ROUTE, split.route_id] = split_words(split)
    if experiments := _keys(topics, EXPERIMENT):
        for news in experiments_news(experiments):
            words[EXPERIMENT, news.id] = _experiment_words(news)
    for rollout in _keys(topics, ROLLOUT):
        if (report := rollout_report(rollout)) is not None:
            words[ROLLOUT, rollout] = rollout_words(report)
    return words


def split_words(split: RouteSplit) -> Words:
    """Return what is renewed of a split, by the names that ``console/split.html`` marks it with."""
    key = f"r{split.route_id}"
    texts = {
        f"{key}.total": str(split.n_requests),
        f"{key}.since": f"{split.since:%H:%M:%S}",
        f"{key}.shape": split.shape,
    }
    for line in split.lines:
        texts |= {
            f"{line.key}.got": line.got,
            f"{line.key}.width": line.got_width,
            f"{line.key}.n": str(line.n_requests),
            f"{line.key}.open": str(line.n_open),
            f"{line.key}.failed": str(line.n_failed),
        }
    return Words(texts=texts, tones={})


def _experiment_words(news: ExperimentNews) -> Words:
    """The page fetches what is new by itself: it is more than words."""
    key = f"x{news.id}"
    texts = {
        f"{key}.state": news.state_label,
        f"{key}.shape": news.shape,
        f"{key}.news": news.news,
    }
    return Words(texts=texts, tones={f"{key}.state": _STATE_TONES[news.state]})


def rollout_words(report: RolloutReport) -> Words:
    """Return what is renewed of a rollout, by the names that ``rollouts/report.html`` marks it
    with."""
    key = report.key
    texts = {
        f"{key}.shape": report.shape,
        f"{key}.state": report.state_label,
        f"{key}.percent": report.percent_said,
        f"{key}.next": report.next_said,
    }
    tones: dict[str, str] = {f"{key}.state": report.tone}
    for step in report.steps:
        place = f"{key}.s{step.index}"
        texts |= {
            f"{place}.n": f"{step.n_candidate:,}",
            f"{place}.nc": f"{step.n_candidate:,}",
            f"{place}.nb": f"{step.n_baseline:,}",
            f"{place}.failed": f"{step.n_failed:,}",
            f"{place}.width": step.width,
        }
    for guard in report.judged.guardrails if report.judged is not None else ():
        place = f"{key}.{guard.metric}"
        texts |= {
            f"{place}.old": guard.baseline or "-",
            f"{place}.new": guard.candidate or "-",
            f"{place}.verdict": guard.verdict,
            f"{place}.x": guard.interval_x,
            f"{place}.width": guard.interval_width,
        }
        tones[f"{place}.verdict"] = guard.tone
    return Words(texts=texts, tones=tones)


def _progress_words(key: str, *, is_open: bool, progress: str, percent: int) -> Words:
    texts = {
        f"{key}.open": "open" if is_open else "ended",
        f"{key}.progress": progress,
        f"{key}.percent": str(percent),
    }
    return Words(texts=texts, tones={})


def _keys(topics: Collection[Topic], kind: str) -> list[int]:
    return [key for each, key in topics if each == kind]
