"""What one batch of counting does to subjects and totals, in memory between two reads and two
writes. Used within a transaction of ``counting``'s."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import datetime
from operator import add, attrgetter, sub
from typing import Final, Self

from apps.experiments.baselines import baselines_of
from apps.experiments.metrics import REQUESTS, Metric, Pair, metrics_by_key
from apps.experiments.models import Assignment, Experiment, VariantTotal
from apps.experiments.types import Arm
from apps.feedback.types import ObservedEvent
from apps.metering.types import ObservedRequest
from apps.statistics.moments import Moments

MAX_SEGMENTS: Final = 50  # of an experiment, besides all; further tenants are in all only
CROSSED: Final = "crossed"  # a total, of those left out; no metric
_SUMS: Final = attrgetter(*(each.name for each in fields(Moments)))  # as ``to_json`` orders them
_NOTHING: Final = (0,) * len(fields(Moments))
_ALL: Final = frozenset([""])
_BY_BATCH: Final = 500  # rows of one statement; SQLite bounds its parameters

Key = tuple[int, str, str]  # variant, metric, segment
Sums = tuple[int, ...]
Share = dict[str, tuple[int, int, int, int]]  # metric → what a unit is: y, x, v, u
Standing = tuple[int, frozenset[str], Share, bool]  # variant, segments, share, whether left out


@dataclass(slots=True)
class Subject:
    """A subject that the batch touches. before: where it stands in the totals of the
    database. first_request: the first that was ever counted of it, if that is in this
    batch."""

    row: Assignment
    before: Standing
    first_request: ObservedRequest | None = None


@dataclass(slots=True)
class Ground:
    """An experiment, locked. segments: those that it has totals of."""

    experiment: Experiment
    metrics: dict[str, Metric]
    variants: frozenset[int]
    segments: set[str]
    by_event: dict[str, list[Metric]] = field(init=False)

    def __post_init__(self) -> None:
        self.by_event = {}
        for metric in self.metrics.values():
            if metric.event_name:
                self.by_event.setdefault(metric.event_name, []).append(metric)


@dataclass(slots=True)
class Batch:
    """Experiments and the subjects that were asked for, as they are; those that are new come with
    their first request or event."""

    grounds: dict[int, Ground]
    subjects: dict[tuple[int, str], Subject] = field(default_factory=dict)
    touched: set[tuple[int, str]] = field(default_factory=set)

    @classmethod
    def of(cls, arms: Iterable[Arm]) -> Self:
        """Lock the experiments of these arms and read their subjects."""
        wanted: defaultdict[int, set[str]] = defaultdict(set)
        for arm in arms:
            wanted[arm.experiment_id].add(arm.subject)
        batch = cls(_grounds(sorted(wanted)))
        for pk, ground in batch.grounds.items():
            digests = sorted(wanted[pk])
            for start in range(0, len(digests), _BY_BATCH):
                rows = Assignment.objects.filter(
                    experiment_id=pk, subject__in=digests[start : start + _BY_BATCH]
                )
                for row in rows:
                    batch.subjects[pk, row.subject] = Subject(row, _stands(row, ground))
        return batch

    def request_add(self, arm: Arm, request: ObservedRequest) -> None:
        ground = self._ground(arm)
        if ground is None:
            return
        subject = self._subject(arm, tenant_id=request.tenant_id, at=request.created_at)
        row = subject.row
        self._seen_in(arm, row)
        moment = (request.created_at, request.door, arm.variant_id)
        if not row.door:  # the first request; what there was before are events
            subject.first_request = request
        if not row.door or moment < (row.first_seen_at, row.door, row.variant_id):
            row.first_seen_at, row.door, row.variant_id = moment
        row.last_seen_at = max(row.last_seen_at, request.created_at)
        for key, metric in ground.metrics.items():
            if metric.of_request and (pair := metric.of_request(request)) is not None:
                _add(row.totals, key, pair)
        row.n_requests = row.totals[REQUESTS][0]

    def event_add(self, arm: Arm, event: ObservedEvent) -> None:
        ground = self._ground(arm)
        if ground is None or event.name not in ground.by_event:
            return
        row = self._subject(arm, tenant_id=event.tenant_id, at=event.created_at).row
        self._seen_in(arm, row)
        self._event_into(row, ground, event)

    def event_of_person_add(self, arm: Arm, event: ObservedEvent) -> None:
        """Add an event to a subject that is known, if it was one when it happened."""
        ground = self.grounds.get(arm.experiment_id)
        subject = self.subjects.get((arm.experiment_id, arm.subject))
        if ground is None or subject is None:
            return
        stopped_at = ground.experiment.stopped_at
        if event.created_at < subject.row.first_seen_at or (
            stopped_at is not None and event.created_at > stopped_at
        ):
            return
        self.touched.add((arm.experiment_id, arm.subject))
        self._event_into(subject.row, ground, event)

    def save(self) -> None:
        """Write the subjects that were touched, and bring the totals to what these are now."""
        self._baselines_set()
        changes = _Changes()
        rows = []
        for key in sorted(self.touched):
            subject, ground = self.subjects[key], self.grounds[key[0]]
            _segments_open(subject.row, ground)
            _replace(changes, subject.before, _stands(subject.row, ground))
            rows.append(subject.row)
        Assignment.objects.bulk_create(
            rows,
            batch_size=_BY_BATCH,
            update_conflicts=True,
            unique_fields=["experiment", "subject"],
            update_fields=[
                "variant", "door", "first_seen_at", "last_seen_at", "n_requests", "is_crossed",
                "totals", "baseline",
            ],
        )  # fmt: skip
        _totals_move(changes.by_total())

    def _ground(self, arm: Arm) -> Ground | None:
        """Return the experiment of an arm; None where it, or the arm, was deleted."""
        ground = self.grounds.get(arm.experiment_id)
        return ground if ground is not None and arm.variant_id in ground.variants else None

    def _subject(self, arm: Arm, *, tenant_id: int, at: datetime) -> Subject:
        key = (arm.experiment_id, arm.subject)
        self.touched.add(key)
        if key not in self.subjects:
            row = Assignment(
                experiment_id=arm.experiment_id,
                variant_id=arm.variant_id,
                subject=arm.subject,
                tenant_id=tenant_id,
                first_seen_at=at,
                last_seen_at=at,
            )
            self.subjects[key] = Subject(row, (arm.variant_id, frozenset(), {}, False))
        return self.subjects[key]

    @staticmethod
    def _seen_in(arm: Arm, row: Assignment) -> None:
        if row.variant_id != arm.variant_id:
            row.is_crossed = True

    @staticmethod
    def _event_into(row: Assignment, ground: Ground, event: ObservedEvent) -> None:
        row.last_seen_at = max(row.last_seen_at, event.created_at)
        for metric in ground.by_event.get(event.name, ()):
            if event.previous is not None:
                y, x = metric.value_of_event(event.previous)
                _add(row.totals, metric.key, (-y, -x))
            _add(row.totals, metric.key, metric.value_of_event(event.value))

    def _baselines_set(self) -> None:
        """Look up what the subjects that begin in this batch did before: once for each, in one
        query for each experiment."""
        for pk, ground in self.grounds.items():
            first = {
                key[1]: subject.first_request
                for key, subject in self.subjects.items()
                if key[0] == pk and subject.first_request is not None
            }
            for digest, baseline in baselines_of(ground.experiment, ground.metrics, first).items():
                self.subjects[pk, digest].row.baseline = baseline


def _grounds(pks: list[int]) -> dict[int, Ground]:
    locked = Experiment.objects.select_for_update(no_key=True, of=("self",))
    rows = list(
        locked.filter(pk__in=pks).order_by("pk").prefetch_related("variants", "metrics", "route")
    )
    segments: defaultdict[int, set[str]] = defaultdict(set)
    totals = VariantTotal.objects.filter(variant__experiment_id__in=pks, metric=REQUESTS)
    for pk, segment in totals.values_list("variant__experiment_id", "segment").distinct():
        segments[pk].add(segment)
    return {
        row.pk: Ground(
            experiment=row,
            metrics=metrics_by_key([each.metric for each in row.metrics.all()]),
            variants=frozenset(each.pk for each in row.variants.all()),
            segments=segments[row.pk] | {""},
        )
        for row in rows
    }


def _add(totals: dict[str, list[int]], key: str, pair: Pair) -> None:
    there = totals.setdefault(key, [0, 0])
    there[0] += pair[0]
    there[1] += pair[1]


def _own_segments(row: Assignment) -> list[str]:
    return [f"tenant:{row.tenant_id}", *([f"door:{row.door}"] if row.door else [])]


def _segments_open(row: Assignment, ground: Ground) -> None:
    for segment in _own_segments(row):
        if len(ground.segments) <= MAX_SEGMENTS:
            ground.segments.add(segment)


def _stands(row: Assignment, ground: Ground) -> Standing:
    """Return where in the totals a subject is, and with what."""
    segments = frozenset(["", *ground.segments.intersection(_own_segments(row))])
    if row.is_crossed:
        return row.variant_id, segments, {}, True
    share: Share = {}
    for key, metric in ground.metrics.items():
        y, x = row.totals.get(key, (0, 0))
        v, u = row.baseline.get(key, (0, 0))
        if metric.is_per_subject:
            x, u = 1, int(bool(row.baseline))
        if x:
            share[key] = (y, x, v, u)
    return row.variant_id, segments, share, False


def _replace(changes: "_Changes", before: Standing, after: Standing) -> None:
    """Take out of the totals what a subject was there, and put in what it is now."""
    is_moved = before[:2] != after[:2]
    for (variant, segments, share, is_crossed), other, sums in (
        (before, after, changes.gone),
        (after, before, changes.come),
    ):
        for key, unit in share.items():
            if is_moved or other[2].get(key) != unit:
                _sum_into(sums, (variant, key, segments), _SUMS(Moments.of(*unit)))
        if is_crossed:
            _sum_into(sums, (variant, CROSSED, _ALL), _SUMS(Moments.of(1, 1)))


@dataclass(slots=True)
class _Changes:
    """Sums over subjects that stand in the same segments: most do with many others, and so their
    numbers are added once and not for each segment."""

    gone: dict[tuple[int, str, frozenset[str]], Sums] = field(default_factory=dict)
    come: dict[tuple[int, str, frozenset[str]], Sums] = field(default_factory=dict)

    def by_total(self) -> dict[Key, Sums]:
        found: dict[Key, Sums] = {}
        for sums, move in ((self.come, add), (self.gone, sub)):
            for (variant, metric, segments), numbers in sums.items():
                for segment in segments:
                    key = (variant, metric, segment)
                    found[key] = tuple(map(move, found.get(key, _NOTHING), numbers))
        return {key: numbers for key, numbers in found.items() if any(numbers)}


def _sum_into(
    sums: dict[tuple[int, str, frozenset[str]], Sums],
    key: tuple[int, str, frozenset[str]],
    numbers: Sums,
) -> None:
    there = sums.get(key)
    sums[key] = numbers if there is None else tuple(map(add, there, numbers))


def _totals_move(changes: dict[Key, Sums]) -> None:
    if not changes:
        return
    stored = VariantTotal.objects.filter(
        variant_id__in={key[0] for key in changes},
        metric__in={key[1] for key in changes},
        segment__in={key[2] for key in changes},
    )
    for row in stored:
        key = (row.variant_id, row.metric, row.segment)
        if key in changes:
            changes[key] = tuple(map(add, changes[key], row.moments))
    VariantTotal.objects.bulk_create(
        [
            VariantTotal(variant_id=variant, metric=metric, segment=segment, moments=numbers)
            for (variant, metric, segment), numbers in sorted(changes.items())
        ],
        batch_size=_BY_BATCH,
        update_conflicts=True,
        unique_fields=["variant", "metric", "segment"],
        update_fields=["moments"],
    )
