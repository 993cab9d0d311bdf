"""The form of the page that starts a rollout. What is typed is in percent; what is handed on is in
parts, as ``rollouts.types`` has it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django import forms

from apps.rollouts.models import Rollout
from apps.rollouts.tallies import RATES
from apps.rollouts.types import DEFAULT_GUARDRAILS, DEFAULT_STEPS, GuardrailSpec, StepSpec
from apps.rollouts.wording import LABELS

MAX_STEPS: Final = 10
OF_EMBEDDINGS: Final = ("error_rate",)  # they have no tokens to wait for, and nothing to rate
PRESETS: Final[Mapping[str, tuple[str, tuple[StepSpec, ...]]]] = {
    "careful": ("1, 10, 50, 100 %", DEFAULT_STEPS),
    "quick": (
        "10, 100 %",
        (
            StepSpec(percent=10.0),
            StepSpec(percent=100.0, min_requests=0, min_minutes=0.0),
        ),
    ),
    "slow": (
        "1, 5, 10, 25, 50, 100 %",
        (
            *(StepSpec(percent=each, min_requests=500, min_minutes=30.0) for each in (1.0, 5.0)),
            *(StepSpec(percent=each, min_minutes=30.0) for each in (10.0, 25.0, 50.0)),
            StepSpec(percent=100.0, min_requests=0, min_minutes=0.0),
        ),
    ),
}
_PREFIX: Final = "tolerance_"


class StepForm(forms.Form):
    """A step; one of which nothing is filled in is none."""

    percent = forms.FloatField(label="Percent", min_value=0.1, max_value=100)
    min_requests = forms.IntegerField(
        label="Least requests", min_value=0, max_value=10_000_000, required=False
    )
    min_minutes = forms.FloatField(
        label="Least minutes", min_value=0, max_value=60 * 24 * 30, required=False
    )

    @property
    def spec(self) -> StepSpec | None:
        given = self.cleaned_data
        if given.get("percent") is None:
            return None
        return StepSpec(
            percent=given["percent"],
            min_requests=given.get("min_requests") or 0,
            min_minutes=given.get("min_minutes") or 0.0,
        )


class StartForm(forms.Form):
    """routes, deployments: of which this person may choose."""

    route: Any = forms.ModelChoiceField(queryset=None)
    candidate: Any = forms.ModelChoiceField(queryset=None, label="New deployment")
    baseline: Any = forms.ModelChoiceField(
        queryset=None, label="Old deployment", required=False, empty_label="the one that it has"
    )
    approval = forms.ChoiceField(
        label="The next step comes",
        choices=[
            (Rollout.Approval.AUTOMATIC, "by itself"),
            (Rollout.Approval.LAST, "by itself, the last after approval"),
            (Rollout.Approval.EACH, "after approval, each of them"),
        ],
        initial=Rollout.Approval.AUTOMATIC,
    )
    needs_second_person = forms.BooleanField(
        label="Whoever starts it cannot approve it", required=False
    )
    alpha = forms.FloatField(
        label="False alarms, %", min_value=0.1, max_value=20, initial=5, required=False
    )

    def __init__(self, *args: Any, routes: Any, deployments: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["route"].queryset = routes  # type: ignore[attr-defined]
        for name in ("candidate", "baseline"):
            self.fields[name].queryset = deployments  # type: ignore[attr-defined]
        for metric, label in LABELS.items():
            self.fields[f"{_PREFIX}{metric}"] = forms.FloatField(
                label=label, min_value=0, max_value=1000, required=False
            )

    @property
    def guards(self) -> list[tuple[forms.BoundField, str]]:
        """Return the fields of the tolerances, each with its unit."""
        return [
            (self[f"{_PREFIX}{metric}"], "points" if metric in RATES else "%") for metric in LABELS
        ]

    @property
    def guardrails(self) -> tuple[GuardrailSpec, ...]:
        given = {metric: self.cleaned_data.get(f"{_PREFIX}{metric}") for metric in LABELS}
        return tuple(
            GuardrailSpec(metric=metric, tolerance=value / 100)
            for metric, value in given.items()
            if value is not None
        )


def guardrails_initial(task: str) -> dict[str, str]:
    """Return the usual tolerances of those that there are for what the models do."""
    return {
        f"{_PREFIX}{each.metric}": f"{100 * each.tolerance:g}"
        for each in DEFAULT_GUARDRAILS
        if task == "generate" or each.metric in OF_EMBEDDINGS
    }


def steps_initial(specs: Sequence[StepSpec]) -> list[dict[str, str]]:
    return [
        {
            "percent": f"{each.percent:g}",
            "min_requests": str(each.min_requests),
            "min_minutes": f"{each.min_minutes:g}",
        }
        for each in specs
    ]


def step_forms(
    data: Mapping[str, Any] | None, initial: Sequence[Mapping[str, str]] = ()
) -> list[StepForm]:
    """Return the steps as they were sent, or as they are offered."""
    if data is None:
        return [
            StepForm(initial=dict(each), prefix=f"step-{number}", use_required_attribute=False)
            for number, each in enumerate(initial)
        ]
    return [
        StepForm(
            data,
            prefix=f"step-{number}",
            empty_permitted=True,
            use_required_attribute=False,
        )
        for number in range(_n_steps(data))
    ]


def steps_typed(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what was typed, right or wrong, to be offered again."""
    names = tuple(StepForm.base_fields)
    return [
        {name: data.get(f"step-{number}-{name}", "") for name in names}
        for number in range(_n_steps(data))
    ]


def _n_steps(data: Mapping[str, Any]) -> int:
    text = str(data.get("n_steps", ""))
    is_number = text.isascii() and text.isdecimal() and len(text) < 4
    return min(int(text), MAX_STEPS) if is_number else 0
