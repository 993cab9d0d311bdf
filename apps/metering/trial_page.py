"""The page that tries limits on the last week: opened from a plan's page or a tenant's, with what
stands in its form. Nothing that is asked here is saved."""

from typing import Any, Final

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.forms import modelform_factory
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from apps.core.access import access_in
from apps.core.limits import LIMIT_NAMES, Limits
from apps.metering.models import UsageRollup
from apps.metering.trial import DAYS, ROWS_AT_MOST, TrialSubject, limits_trial
from apps.tenants.selectors import plan_get, tenant_get, tenant_limits, tenants_of_plan

TENANTS_AT_MOST: Final = 200
# Both: it says what tenants used, and what limits would do to them.
_NEEDED: Final = ("tenants.change_plan", "metering.view_usagerecord")
_plans: Any = (
    UsageRollup._meta.get_field("tenant").related_model._meta.get_field("plan").related_model
)
# As a plan's own page reads them.
LimitsForm: Any = modelform_factory(_plans, fields=LIMIT_NAMES)


@require_http_methods(["GET", "HEAD", "POST"])
def trial_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    """``?plan=`` or ``?tenant=`` says whose limits; what is posted are those to try."""
    access = access_in(request)
    if not all(access.may(each) for each in _NEEDED):
        raise PermissionDenied
    subject, is_plan = _subject(request)
    is_asked = request.method == "POST"
    form = LimitsForm(
        request.POST if is_asked else None, auto_id="try-%s", initial=_fields(subject)
    )
    context = {
        **site.each_context(request),
        "title": f"Try limits: {subject}",
        "form": form,
        "subject": subject,
        "is_plan": is_plan,
        "days": DAYS,
        "rows_at_most": ROWS_AT_MOST,
        "tenants_at_most": TENANTS_AT_MOST,
    }
    if is_asked and form.is_valid():
        proposed = Limits.of(form.instance)
        subjects = _of_plan(subject, proposed) if is_plan else [_of_tenant(subject, proposed)]
        context |= {
            "trial": limits_trial(subjects[:TENANTS_AT_MOST], now=timezone.now()),
            "is_more": len(subjects) > TENANTS_AT_MOST,
        }
    return TemplateResponse(request, "admin/metering/try_limits.html", context)


def _subject(request: HttpRequest) -> tuple[Any, bool]:
    """Return the plan or the tenant, and which of them it is."""
    for name, read in (("plan", plan_get), ("tenant", tenant_get)):
        text = request.GET.get(name, "")
        if text.isdecimal() and len(text) < 19:
            found = read(int(text))
            if found is not None:
                return found, name == "plan"
    raise Http404


def _fields(subject: Any) -> dict[str, Any]:
    return {name: getattr(subject, name) for name in LIMIT_NAMES}


def _of_plan(plan: Any, proposed: Limits) -> list[TrialSubject]:
    return [
        TrialSubject(
            tenant_id=tenant.pk,
            name=tenant.name,
            proposed=proposed.overridden_by(Limits.of(tenant)),
            current=tenant_limits(tenant),
        )
        for tenant in tenants_of_plan(plan, limit=TENANTS_AT_MOST + 1)
    ]


def _of_tenant(tenant: Any, proposed: Limits) -> TrialSubject:
    return TrialSubject(
        tenant_id=tenant.pk,
        name=tenant.name,
        proposed=Limits.of(tenant.plan).overridden_by(proposed),
        current=tenant_limits(tenant),
    )
