"""Forms of deployments' pages, where a model's own fields are not enough."""

from django import forms
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldBooleanSwitchWidget

from apps.deployments.models import RemoteServer


class RemoteServerForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """``new_key`` is for the service: None keeps what there is, empty takes it away."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        max_length=4096,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text="Kept sealed, and never shown again. Empty keeps the one that there is.",
    )
    takes_key_away = forms.BooleanField(
        label="No key",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="Take away the one that there is.",
    )

    class Meta:
        model = RemoteServer
        fields = "__all__"  # noqa: DJ007 - what the page shows, its admin says

    @property
    def new_key(self) -> str | None:
        if self.cleaned_data.get("takes_key_away"):
            return ""
        return self.cleaned_data.get("api_key") or None
