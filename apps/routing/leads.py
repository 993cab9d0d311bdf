"""Where a route leads and what else it is called: the rows beside a route, as its services write
them. Each change is told as [before, after]."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError

from apps.routing.models import Route, RouteAlias, RouteTarget
from apps.routing.types import TargetSpec
from apps.tenants.selectors import is_second_person_demanded

if TYPE_CHECKING:
    from apps.deployments.models import Deployment

Change = dict[str, list[list[str]]]


def targets_change(route: Route, targets: Sequence[TargetSpec] | None) -> Change:
    """Return how the targets differ from those that there are; nothing where they do not."""
    if targets is None:
        return {}
    before, after = _said(targets_of(route)), _said(targets)
    return {} if before == after else {"targets": [before, after]}


def targets_differ(route: Route, targets: Sequence[TargetSpec]) -> bool:
    """Return whether anything does, also what is not told."""
    return set(targets_of(route)) != set(targets)


def targets_write(route: Route, targets: Sequence[TargetSpec]) -> None:
    """Put these in place of those that there are.

    Raises:
        ValidationError: of ``targets``; says what is wrong with them.
    """
    if problem := targets_problem(targets):
        raise ValidationError({"targets": problem})
    RouteTarget.objects.filter(route=route).delete()
    for target in targets:
        row = RouteTarget(
            route=route,
            deployment=target.deployment,
            weight=target.weight,
            fallback_order=target.fallback_order,
            arm=target.arm,
        )
        try:
            row.full_clean()
        except ValidationError as error:
            said = " ".join(error.messages)
            raise ValidationError({"targets": f"{target.deployment}: {said}"}) from None
        row.save()


def targets_problem(targets: Sequence[TargetSpec]) -> str | None:
    """Return why a route cannot lead to these together; None where it can."""
    names = Counter(str(target.deployment) for target in targets)
    twice = sorted(name for name, n in names.items() if n > 1)
    if twice:
        return f"{twice[0]} is there twice."
    orders = Counter(each.fallback_order for each in targets if each.fallback_order is not None)
    if any(n > 1 for n in orders.values()):
        return "Two fallbacks have the same place."
    if not any(target.weight > 0 for target in targets):
        return "At least one deployment needs a weight above 0."
    if len({target.deployment.task for target in targets}) > 1:
        makers = sorted(str(each.deployment) for each in targets if each.deployment.task == "embed")
        return f"Some generate text and some make embeddings ({', '.join(makers)}); give one kind."
    return None


def are_two_demanded(route: Route) -> bool:
    """Return whether a tenant that a route is for wants two persons; one for all is for each."""
    within = list(route.tenants.values_list("pk", flat=True)) if route.is_restricted else None
    return is_second_person_demanded(within)


def newcomers_check(route: Route, targets: Sequence[TargetSpec]) -> None:
    """Refuse a deployment that gets no request of a route by now, where a tenant that the route is
    for wants two persons for that: it comes by a rollout.

    Raises:
        ValidationError: of ``targets``.
    """
    known = {each.deployment.pk for each in targets_of(route) if each.is_asked}
    new = [each.deployment for each in targets if each.is_asked and each.deployment.pk not in known]
    if new and are_two_demanded(route):
        raise ValidationError(
            {"targets": f"{new[0]} is new here, and two persons are wanted: begin a rollout."}
        )


def aliases_change(route: Route, aliases: Collection[str] | None) -> Change:
    """Return how the further names differ from those that there are."""
    if aliases is None:
        return {}
    before = sorted(RouteAlias.objects.filter(route=route).values_list("name", flat=True))
    after = sorted(aliases)
    return {} if before == after else {"aliases": [before, after]}


def aliases_write(route: Route, aliases: Collection[str]) -> None:
    """Put these in place of those that there are.

    Raises:
        ValidationError: of ``aliases``; says which is no name, or is taken.
    """
    RouteAlias.objects.filter(route=route).exclude(name__in=aliases).delete()
    kept = set(RouteAlias.objects.filter(route=route).values_list("name", flat=True))
    for name in aliases:
        if name in kept:
            continue
        kept.add(name)
        row = RouteAlias(route=route, name=name)
        try:
            row.full_clean()
        except ValidationError as error:
            said = " ".join(error.messages)
            raise ValidationError({"aliases": f"{name[:120]!r}: {said}"}) from None
        row.save()


def names_check(route: Route) -> None:
    """Check that what is now a name of this route is no name of another. Right also beside others
    who write, if it comes after the stamp of routes was moved: they then wait for each other.

    Raises:
        ValidationError: of ``name`` or ``aliases``.
    """
    own = list(RouteAlias.objects.filter(route=route).values_list("name", flat=True))
    if taken := Route.objects.filter(name__in=own).values_list("name", flat=True).first():
        raise ValidationError({"aliases": f"{taken!r} is the name of a route."})
    other = RouteAlias.objects.filter(name=route.name).select_related("route").first()
    if other is not None:
        raise ValidationError({"name": f"This is a further name of the route {other.route}."})


def targets_of(route: Route) -> list[TargetSpec]:
    """Return where a route leads now."""
    rows = RouteTarget.objects.filter(route=route).select_related("deployment")
    return [
        TargetSpec(
            deployment=row.deployment,
            weight=row.weight,
            fallback_order=row.fallback_order,
            arm=row.arm,
        )
        for row in rows
    ]


def targets_merged(
    before: Sequence[TargetSpec],
    *,
    shares: Sequence[TargetSpec] | None,
    chain: Sequence["Deployment"] | None,
) -> list[TargetSpec]:
    """Return the targets as they shall be. shares: those with weights; chain: the fallbacks in
    their order; of each None leaves those that there are, but for what is now of the other kind."""
    fallbacks = chain
    if fallbacks is None:
        kept = [each for each in before if each.fallback_order is not None]
        ordered = sorted(kept, key=lambda each: each.fallback_order or 0)
        named = {each.deployment for each in shares or ()}
        fallbacks = [each.deployment for each in ordered if each.deployment not in named]
    if shares is None:
        named = set(fallbacks)
        shares = [
            each for each in before if each.fallback_order is None and each.deployment not in named
        ]
    places = enumerate(fallbacks, 1)
    return [
        *shares,
        *(TargetSpec(deployment=each, fallback_order=place) for place, each in places),
    ]


def _said(targets: Sequence[TargetSpec]) -> list[str]:
    return sorted(map(str, targets))
