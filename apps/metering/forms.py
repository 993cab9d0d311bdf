"""What the page of usage can be asked."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django import forms
from django.utils import timezone

from apps.metering.models import UsageRollup
from apps.metering.usage_report import DIMENSIONS, UsageQuery

_TENANTS_LISTED: Final = 200
_DAYS_SHOWN: Final = 7
_DAYS_MOST: Final = {"hour": 31, "day": 366, "span": 366}
# The rooms below, as this room's own relation knows them.
_tenants: Any = UsageRollup._meta.get_field("tenant").related_model
_plans: Any = _tenants._meta.get_field("plan").related_model


def _day(label: str) -> forms.DateField:
    widget = forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
    return forms.DateField(label=label, widget=widget)


class UsageForm(forms.Form):
    """What is not said has a default, so that the page needs no question.

    in_sight: the tenants that whoever asks may see; None for all. Others are not there, and neither
    are plans, which belong to no tenant.
    """

    first = _day("First day")
    last = _day("Last day")
    per = forms.ChoiceField(
        label="A line", choices=[("day", "per day"), ("hour", "per hour"), ("span", "for all days")]
    )
    by = forms.ChoiceField(
        label="And",
        required=False,
        choices=[("", "all together"), *((name, f"by {name}") for name in DIMENSIONS)],
    )
    tenant = forms.ModelChoiceField(
        queryset=_tenants.objects.select_related("plan"), required=False
    )
    plan = forms.ModelChoiceField(
        queryset=_plans.objects.order_by("name"), required=False, empty_label="All plans"
    )
    route = forms.CharField(
        required=False,
        max_length=120,
        widget=forms.TextInput(attrs={"placeholder": "All models"}),
    )
    token = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=2**63 - 1,
        widget=forms.NumberInput(attrs={"placeholder": "All tokens"}),
    )

    def __init__(self, asked: Any, *, in_sight: frozenset[int] | None) -> None:
        today = timezone.now().astimezone(UTC).date()
        defaults = {
            "first": str(today - timedelta(days=_DAYS_SHOWN - 1)),
            "last": str(today),
            "per": "day",
        }
        given = {name: asked[name] for name in self.base_fields if asked.get(name)}
        super().__init__(defaults | given, auto_id="usage-%s")
        self._in_sight = in_sight
        tenants: Any = self.fields["tenant"]
        tenants.queryset = self._tenants_in_sight()
        names = tenants.queryset.values_list("pk", "name")[:_TENANTS_LISTED]
        choices = [(str(pk), name) for pk, name in names]
        chosen = given.get("tenant")
        if chosen and chosen not in dict(choices):  # one further down the alphabet
            choices.append((chosen, f"#{chosen}"))
        tenants.widget.choices = [("", "All tenants"), *choices]
        if in_sight is not None:
            del self.fields["plan"]

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        first, last = data.get("first"), data.get("last")
        if first and last:
            most = _DAYS_MOST.get(data.get("per", ""), 31)
            if last < first:
                self.add_error("last", "The last day is before the first.")
            elif (last - first).days >= most:
                self.add_error("last", f"No more than {most} days at once.")
        return data

    def query(self) -> UsageQuery:
        """Return what was asked; only of a form that is valid."""
        data = self.cleaned_data
        return UsageQuery(
            first=data["first"],
            last=data["last"],
            per=data["per"],
            by=data["by"] or None,
            in_sight=self._in_sight,
            tenant_id=data["tenant"].pk if data["tenant"] else None,
            plan_id=data["plan"].pk if data.get("plan") else None,
            route_name=data["route"],
            api_token_id=data["token"],
        )

    def budget_tenants(self) -> Any:
        """Return the tenants whose budgets are asked for: one, or those of a plan; else nobody."""
        data = self.cleaned_data
        tenants = self._tenants_in_sight()
        if data["tenant"]:
            return tenants.filter(pk=data["tenant"].pk)
        return tenants.filter(plan=data["plan"]) if data.get("plan") else tenants.none()

    def _tenants_in_sight(self) -> Any:
        tenants = _tenants.objects.order_by("name")
        return tenants if self._in_sight is None else tenants.filter(pk__in=self._in_sight)


class ReconcileForm(forms.Form):
    """Since when to look, from a midnight on."""

    since = _day("Since")

    def since_midnight(self) -> datetime:
        day = self.cleaned_data["since"]
        return datetime(day.year, day.month, day.day, tzinfo=UTC)
