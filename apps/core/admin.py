"""What every room's admin is built on: pages that read in bounded queries and write through a
service. It knows no room above it; ``audit.selectors.actor_of`` says who acts."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from django.contrib import messages
from django.contrib.admin.utils import flatten, flatten_fieldsets
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db import IntegrityError, models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.http import urlencode
from unfold import decorators
from unfold.admin import ModelAdmin, TabularInline
from unfold.views import ChangeList

from apps.core.exceptions import AppError

COUNT_BOUND = 10_000
# How a form shows ``core.limits.LimitFields``.
LIMIT_ROWS = (
    ("requests_per_minute", "max_concurrent_requests"),
    ("tokens_per_day", "tokens_per_month"),
    "max_context_tokens",
    "allowed_routes",
)

_F = TypeVar("_F", bound=Callable[..., Any])


class _Decorator(Protocol):
    def __call__(self, **options: Any) -> Callable[[_F], _F]: ...


# The theme's decorators carry no types; these are the same with them.
display: _Decorator = decorators.display
action: _Decorator = decorators.action


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """Counts and pages no further than ``COUNT_BOUND`` rows, so that a page of a large table costs
    no more than one of a small table. What lies deeper is found by search and filters."""

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        if isinstance(rows, models.QuerySet):
            return rows.order_by()[:COUNT_BOUND].count()
        return len(rows)


class BoundedChangeList(ChangeList):
    """Says how many rows there are only where the bounded count is that number."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.query and not self.has_active_filters:
            self.full_result_count = self.result_count


class BaseAdmin(ModelAdmin):
    """Look and bounds that all lists share. An object's history is its audit trail."""

    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 100
    list_fullwidth = True
    list_filter_sheet = False
    actions: Any = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[BoundedChangeList]:
        return BoundedChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """A list is filtered by what its page shows. Django takes any column of the table, and one
        that nobody may read could be guessed letter by letter: hashes of passwords, salts."""
        name = lookup.partition("__")[0]
        is_shown = name in ("pk", "id") or (request is not None and name in self._shown(request))
        return is_shown and bool(super().lookup_allowed(lookup, value, request))

    def _shown(self, request: HttpRequest) -> set[str]:
        """Return the names of what the list and its rows' pages show or filter by."""
        filters = [each for each in self.get_list_filter(request) if isinstance(each, str)]
        shown = flatten([*self.get_list_display(request), *filters])
        shown += flatten_fieldsets(self.get_fieldsets(request))
        return {str(name).partition("__")[0] for name in shown}

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Take what the address says, but for keys of other rows that can be none: widgets ask the
        database for those, and SQLite cannot even be asked for a number of thirty digits."""
        initial = super().get_changeform_initial_data(request)
        return {name: value for name, value in initial.items() if self._can_be(name, value)}

    def _can_be(self, name: str, value: Any) -> bool:
        field: Any = next((each for each in self.opts.get_fields() if each.name == name), None)
        if field is None or field.related_model is None:
            return True
        key = field.related_model._meta.pk
        try:
            for each in value if isinstance(value, list) else [value]:
                key.run_validators(key.to_python(each))
        except ValidationError:
            return False
        return True

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None:
            field.label = _spoken(str(field.label or ""))
        return field

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        query = urlencode({"object_type": self.model._meta.label, "object_id": object_id})
        return HttpResponseRedirect(f"{reverse('admin:audit_auditevent_changelist')}?{query}")

    def log_addition(self, request: HttpRequest, obj: models.Model, message: Any) -> None:
        """The audit event is the log; Django's own would say it twice."""

    def log_change(self, request: HttpRequest, obj: models.Model, message: Any) -> None:
        """As ``log_addition``."""

    def log_deletions(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> None:
        """As ``log_addition``."""


class ServiceModelAdmin(BaseAdmin):
    """Writes go through services. A refusal (an AppError, or what the form did not foresee: a
    ValidationError, a constraint) is shown as a message, and nothing is changed."""

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        """Call the one service for this save. ``obj`` carries the form's values and is not saved.
        Return what the service saved."""
        raise NotImplementedError

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        raise NotImplementedError

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        saved = self.service_save(request, obj, form=form, change=change)
        obj.__dict__.update(saved.__dict__)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self.service_delete(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> None:
        for obj in queryset:
            self.service_delete(request, obj)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)  # type: ignore[no-any-return]
        except (AppError, ValidationError, IntegrityError) as error:
            return refused(request, error, location=request.get_full_path())

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        try:
            return super().delete_view(request, object_id, extra_context)  # type: ignore[no-any-return]
        except (AppError, models.ProtectedError) as error:
            return refused(request, error, location=self._list_url())

    def response_action(
        self, request: HttpRequest, queryset: models.QuerySet[Any]
    ) -> HttpResponse | None:
        try:
            return super().response_action(request, queryset)  # type: ignore[no-any-return]
        except (AppError, ValidationError, models.ProtectedError) as error:
            return refused(request, error, location=request.get_full_path())

    def _list_url(self) -> str:
        opts = self.model._meta
        return reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")


class ReadOnlyAdmin(BaseAdmin):
    """A list to look at; nobody adds, changes or deletes here, superusers included."""

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Without a button for a history that nobody can make here."""
        context = {"show_history": False, **(extra_context or {})}
        return super().changeform_view(request, object_id, form_url, context)  # type: ignore[no-any-return]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyInline(TabularInline):
    """Rows of another table, capped, to look at."""

    extra = 0
    max_num = 0
    can_delete = False
    show_change_link = True
    per_page = 20

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _spoken(label: str) -> str:
    """A column's name as people say it: "Is active" is "Active", "N replicas" is "Replicas"."""
    for mark in ("Is ", "N "):
        if label.startswith(mark):
            label = label.removeprefix(mark)
    return f"{label[:1].upper()}{label[1:]}".replace("Kv ", "KV ")


def dialog_redirect(request: HttpRequest, location: str) -> HttpResponse:
    """Leave a confirmation dialog for another page: the dialog posts in the background, and a plain
    redirect would be followed there."""
    if request.headers.get("HX-Request"):
        return HttpResponse(headers={"HX-Redirect": location})
    return HttpResponseRedirect(location)


def refused(request: HttpRequest, error: Exception, *, location: str) -> HttpResponseRedirect:
    """Say why a service refused, and go back to ``location``."""
    match error:
        case AppError():
            texts = [error.message]
        case ValidationError():
            texts = error.messages
        case models.ProtectedError():
            texts = [str(error.args[0])]
        case _:
            texts = ["Somebody else changed this at the same time; look again."]
    for text in texts:
        messages.error(request, text)
    return HttpResponseRedirect(location)
