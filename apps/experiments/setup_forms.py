"""The forms of the page on which an experiment is set up. Parts are typed in percent and handed on
as the services have them: an effect of 5 is 0.05."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError

from apps.experiments.metrics import (
    BUILT_IN,
    EVENT_PREFIX,
    JUDGED_PREFIX,
    REQUESTS,
    THUMBS,
    UnknownMetric,
    metric_of,
)
from apps.experiments.models import Experiment, ExperimentMetric
from apps.experiments.types import DOORS
from apps.routing.selectors import defaults_read
from apps.tenants.selectors import tenants_among

N_GUARDRAILS: Final = 4
_DOOR_NAMES: Final = {"rest": "HTTP", "websocket": "WebSocket", "batch": "Batches"}
_MAX_TEMPLATE_CHARS: Final = 20_000


class SetupForm(forms.Form):
    """What an experiment is, but for its variants and what guards it.

    routes: that this person may choose. layers: names of those that there are. events: names that
    programs have reported numbers under. judges: names of models that score answers.
    """

    route: Any = forms.ModelChoiceField(queryset=None, empty_label=None)
    name = forms.SlugField(max_length=60)
    hypothesis = forms.CharField(
        required=False,
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="What is expected, and why. It stands above the results.",
    )
    subject = forms.ChoiceField(
        label="Who stays in one arm",
        choices=Experiment.Subject.choices,
        initial=Experiment.Subject.END_USER,
        help_text="All requests of one of these get the same variant. Without it a request takes "
        "no part.",
    )
    primary = forms.ChoiceField(label="Decided by")
    primary_event = forms.CharField(
        label="Or by a number that programs report",
        required=False,
        max_length=64,
        help_text="Its name at /v1/events; it is taken in place of the choice beside it.",
    )
    better = forms.ChoiceField(
        label="Better is",
        required=False,
        choices=[("", "as usual"), *ExperimentMetric.Better.choices],
    )
    min_effect = forms.FloatField(
        label="Least effect worth finding, %", min_value=0.1, max_value=1000, initial=5
    )
    secondary = forms.MultipleChoiceField(
        label="Looked at besides", required=False, widget=forms.CheckboxSelectMultiple
    )
    share_percent = forms.FloatField(
        label="Share of subjects, %", min_value=0.01, max_value=100, initial=100
    )
    layer: Any = forms.ModelChoiceField(
        queryset=None,
        required=False,
        empty_label=None,
        help_text="Experiments of one layer never have a subject in common.",
    )
    tenants = forms.CharField(
        label="Only tenants",
        required=False,
        max_length=4_000,
        help_text="Their slugs, with spaces between them. Empty: everybody.",
    )
    doors = forms.MultipleChoiceField(
        label="Only by",
        required=False,
        choices=[(each, _DOOR_NAMES[each]) for each in DOORS],
        widget=forms.CheckboxSelectMultiple,
        help_text="None: any way.",
    )
    end_user_prefixes = forms.CharField(
        label="Only end users that begin with",
        required=False,
        max_length=4_000,
        help_text="Beginnings of names, with spaces between them.",
    )
    api_tokens = forms.CharField(
        label="Only API tokens",
        required=False,
        max_length=1_000,
        help_text="Their numbers, with spaces between them.",
    )
    alpha = forms.FloatField(label="False alarms, %", min_value=0.1, max_value=20, initial=5)
    power = forms.FloatField(label="Power, %", min_value=50, max_value=99, initial=80)
    pre_period_days = forms.IntegerField(
        label="Days before it that sharpen it",
        min_value=0,
        max_value=30,
        initial=0,
        help_text="What subjects did before they took part is taken out of the noise (CUPED).",
    )
    planned_units = forms.IntegerField(
        label="Planned subjects",
        required=False,
        min_value=20,
        max_value=2_000_000_000,
        help_text="Empty: computed from the least effect and what the route had.",
    )

    def __init__(
        self,
        *args: Any,
        routes: Any,
        layers: Any,
        events: Iterable[str],
        judges: Iterable[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        fields: dict[str, Any] = self.fields
        fields["route"].queryset = routes
        fields["layer"].queryset = layers
        metrics = metric_choices(events, judges)
        fields["primary"].choices = metrics
        fields["secondary"].choices = metrics

    def clean_tenants(self) -> list[str]:
        slugs = sorted(set(self.cleaned_data["tenants"].split()))
        there = {each.slug for each in tenants_among(slugs=slugs)}
        if strange := [each for each in slugs if each not in there]:
            raise ValidationError(f"There is no tenant {strange[0][:60]!r}.")
        return slugs

    def clean_primary_event(self) -> str:
        name = str(self.cleaned_data["primary_event"]).strip()
        if name:
            try:
                metric_of(f"{EVENT_PREFIX}{name}")
            except UnknownMetric as error:
                raise ValidationError(str(error)) from None
        return name

    def clean_end_user_prefixes(self) -> list[str]:
        return sorted(set(self.cleaned_data["end_user_prefixes"].split()))

    def clean_api_tokens(self) -> list[int]:
        words = self.cleaned_data["api_tokens"].split()
        if strange := [each for each in words if not each.isdecimal() or len(each) > 18]:
            raise ValidationError(f"{strange[0][:40]!r} is no number.")
        return sorted({int(each) for each in words})

    def clean(self) -> dict[str, Any]:
        """What decides is not looked at besides."""
        data = self.cleaned_data
        if name := data.get("primary_event"):
            data["primary"] = f"{EVENT_PREFIX}{name}"
        data["secondary"] = [e for e in data.get("secondary", ()) if e != data.get("primary")]
        return data

    @property
    def eligibility(self) -> dict[str, Any]:
        """Return the conditions that are set, as the services take them."""
        names = ("tenants", "doors", "end_user_prefixes", "api_tokens")
        given = {name: self.cleaned_data.get(name) for name in names}
        return {name: values for name, values in given.items() if values}


class VariantForm(forms.Form):
    """One arm; of the first, which is the control, everything may be left as the route has it. One
    of which nothing is filled in is none."""

    name = forms.SlugField(max_length=40, required=False)
    weight = forms.IntegerField(min_value=1, max_value=1000, required=False)
    deployment: Any = forms.ModelChoiceField(
        queryset=None, required=False, empty_label="as the route has it"
    )
    other_route: Any = forms.ModelChoiceField(
        label="Or where another route leads",
        queryset=None,
        required=False,
        empty_label="no other route",
    )
    parameters = forms.CharField(
        required=False,
        max_length=1_000,
        widget=forms.TextInput(attrs={"placeholder": "temperature=0.2 max_tokens=512"}),
    )
    prompt_template = forms.CharField(
        label="System message",
        required=False,
        max_length=_MAX_TEMPLATE_CHARS,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "{system} stands for their own"}),
    )

    def __init__(self, *args: Any, deployments: Any, routes: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fields: dict[str, Any] = self.fields
        fields["deployment"].queryset = deployments
        fields["other_route"].queryset = routes

    @property
    def is_empty(self) -> bool:
        names = ("name", "deployment", "other_route", "parameters", "prompt_template")
        return not any(self.cleaned_data.get(each) for each in names)

    def clean_parameters(self) -> dict[str, int | float]:
        try:
            return defaults_read(self.cleaned_data["parameters"].split())
        except ValueError as error:
            raise ValidationError(str(error)) from None

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        if self.is_empty or self.errors:
            return data
        for name in ("name", "weight"):
            if not data.get(name):
                self.add_error(name, "This field is required.")
        if data.get("deployment") and data.get("other_route"):
            self.add_error("other_route", "A variant leads to a deployment or to a route.")
        return data


class GuardrailForm(forms.Form):
    """What stops a variant that makes it worse; without a metric it is none."""

    metric = forms.ChoiceField(required=False)
    tolerance = forms.FloatField(label="Worse by, %", min_value=0, max_value=1000, required=False)

    def __init__(
        self, *args: Any, events: Iterable[str], judges: Iterable[str], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        choices = [("", "nothing"), *metric_choices(events, judges)]
        self.fields["metric"].choices = choices  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        if data.get("metric") and data.get("tolerance") is None and "tolerance" not in self.errors:
            self.add_error("tolerance", "This field is required.")
        return data


def metric_choices(events: Iterable[str], judges: Iterable[str]) -> list[tuple[str, str]]:
    """Return what may be chosen: the built-in metrics, what models score, what programs report."""
    keys = [*BUILT_IN, *(f"{JUDGED_PREFIX}{name}" for name in judges)]
    keys += [f"{EVENT_PREFIX}{name}" for name in events]
    return [(key, metric_of(key).label) for key in keys]


# What is offered on an empty page: the second variant is the new one.
VARIANTS_OFFERED: Final[tuple[Mapping[str, Any], ...]] = (
    {"name": "control", "weight": 50},
    {"name": "b", "weight": 50},
)
GUARDRAILS_OFFERED: Final[tuple[Mapping[str, Any], ...]] = (
    {"metric": "error_rate", "tolerance": 20},
    {"metric": "latency", "tolerance": 50},
)
PRIMARY_OFFERED: Final = THUMBS
SECONDARY_OFFERED: Final = ("cost", "completion_tokens", REQUESTS)


def rows_sent(data: Mapping[str, Any], prefix: str, *, most: int) -> int:
    """Return how many rows of a kind were sent; they are numbered from 0."""
    text = str(data.get(f"n_{prefix}", ""))
    is_number = text.isascii() and text.isdecimal() and len(text) < 4
    return min(int(text), most) if is_number else 0
