"""What else than deployments pages are renewed with: an import, a verification, how a route's
requests are shared. Read for all pages together, and for those only that somebody looks at."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final
from urllib.parse import parse_qs

from apps.console.watching import Words
from apps.core.access import Access
from apps.experiments.selectors import ExperimentNews, experiments_news
from apps.registry.selectors import import_jobs_of, verification_progress, verifications_of
from apps.routing.selectors import route_splits
from apps.routing.types import SEE_SPLIT, RouteSplit

JOB: Final = "job"
RUN: Final = "run"
ROUTE: Final = "route"
EXPERIMENT: Final = "experiment"
# What somebody has to hold to be told of a topic of that kind.
_PERMISSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    JOB: ("registry.view_importjob",),
    RUN: ("registry.view_verificationrun",),
    ROUTE: SEE_SPLIT,
    EXPERIMENT: ("experiments.view_experiment",),
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
    verifications, six for the routes and two for the experiments, where such are asked for."""
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


def _progress_words(key: str, *, is_open: bool, progress: str, percent: int) -> Words:
    texts = {
        f"{key}.open": "open" if is_open else "ended",
        f"{key}.progress": progress,
        f"{key}.percent": str(percent),
    }
    return Words(texts=texts, tones={})


def _keys(topics: Collection[Topic], kind: str) -> list[int]:
    return [key for each, key in topics if each == kind]
