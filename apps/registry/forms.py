"""What the pages of versions ask."""

from typing import Any

from django import forms
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from apps.registry.models import ModelVersion
from apps.registry.selectors import model_versions_described


class TagsField(forms.CharField):
    """Names with commas between them, cleaned to a tuple of them."""

    widget = UnfoldAdminTextInputWidget

    def clean(self, value: Any) -> Any:
        text = str(super().clean(value))
        return tuple(part.strip() for part in text.split(",") if part.strip())


class VersionForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    tags = TagsField(
        required=False,
        max_length=1000,
        help_text="By commas, such as: chat, small. Lower-case letters, digits and . _ - only.",
    )

    class Meta:
        model = ModelVersion
        fields = ("license", "parent", "lineage", "model_card")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["tags"] = ", ".join(self.instance.tag_names)


class ReasonForm(BaseDialogForm):  # type: ignore[misc]
    reason = forms.CharField(
        max_length=500,
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Why, for whoever asks later.",
    )


class CompareForm(forms.Form):
    left = forms.ModelChoiceField(ModelVersion.objects.none(), label="This")
    right = forms.ModelChoiceField(ModelVersion.objects.none(), label="Beside that")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("left", "right"):
            field: Any = self.fields[name]
            field.queryset = model_versions_described()
