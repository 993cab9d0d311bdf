"""The form of a route's page, and of the deployments that it leads to."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminTextInputWidget

from apps.routing.defaults import Number, defaults_problems, defaults_read, defaults_said
from apps.routing.leads import targets_problem
from apps.routing.models import Route, RouteTarget
from apps.routing.types import TargetSpec


class RouteForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """What stands in rows beside the route, and its defaults, as words."""

    further_names = forms.CharField(
        required=False,
        max_length=4_000,
        widget=UnfoldAdminTextInputWidget,
        help_text="Clients may put these in the field “model” as well. With spaces between them.",
    )
    default_values = forms.CharField(
        required=False,
        max_length=1_000,
        widget=UnfoldAdminTextInputWidget,
        help_text="For fields of which a request says nothing: temperature=0.2 max_tokens=512.",
    )

    class Meta:
        model = Route
        fields = "__all__"  # noqa: DJ007 - what the page shows, its admin says

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is not None and "further_names" in self.fields:
            names = self.instance.aliases.values_list("name", flat=True)
            self.fields["further_names"].initial = " ".join(names)
            self.fields["default_values"].initial = defaults_said(self.instance.defaults)

    def clean_further_names(self) -> list[str]:
        return sorted(set(self.cleaned_data["further_names"].split()))

    def clean_default_values(self) -> dict[str, Number]:
        try:
            values = defaults_read(self.cleaned_data["default_values"].split())
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if problems := defaults_problems(values):
            raise ValidationError(problems)
        return values


class TargetForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    class Meta:
        model = RouteTarget
        fields = ("deployment", "weight", "fallback_order")

    def validate_unique(self) -> None:
        """The rows are checked together: two may change places."""

    def validate_constraints(self) -> None:
        """As ``validate_unique``."""


class TargetFormSet(forms.BaseInlineFormSet):  # type: ignore[type-arg]  # not generic at run time
    @property
    def specs(self) -> Sequence[TargetSpec]:
        """Return the targets as they shall be."""
        rows = [form.cleaned_data for form in self.forms if form not in self.deleted_forms]
        return [
            TargetSpec(
                deployment=row["deployment"],
                weight=row.get("weight") or 0,
                fallback_order=row.get("fallback_order"),
            )
            for row in rows
            if row.get("deployment") is not None
        ]

    def clean(self) -> None:
        if not any(self.errors) and (problem := targets_problem(self.specs)):
            raise ValidationError(problem)
