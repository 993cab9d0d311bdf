"""What somebody says of a model that is to be imported."""

from typing import Any

from django import forms
from django.conf import settings

from apps.core.exceptions import InvalidRequest
from apps.registry.import_sources import source_below_roots, sources_below_roots
from apps.registry.models import ImportJob


class ImportJobForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    class Meta:
        model = ImportJob
        fields = ("model_name", "kind", "source", "expected_sha256")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "kind" not in self.fields:  # a page to look at
            return
        chosen = [each for each in ImportJob.Kind.choices if each[0] != ImportJob.Kind.COMMAND]
        self.fields["kind"].choices = chosen  # type: ignore[attr-defined]
        roots = ", ".join(map(str, settings.IMPORT_ROOTS))
        there = ", ".join(sources_below_roots()) or "nothing yet"
        self.fields["source"].help_text = (
            f"Of one on the server: below {roots}, where there is {there}. Of an upload: leave it "
            "empty, the file is chosen on the next page."
        )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if cleaned.get("kind") == ImportJob.Kind.ROOT:
            try:
                cleaned["source"] = str(source_below_roots(cleaned.get("source", "")))
            except InvalidRequest as error:
                self.add_error("source", error.message)
        else:
            cleaned["source"] = ""
        return cleaned
