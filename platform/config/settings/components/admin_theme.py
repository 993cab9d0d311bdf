"""How the admin looks: name, colours, side bar."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy

from apps.core.access import access_in


def _static(path: str) -> Callable[[HttpRequest], str]:
    return lambda request: static(path)


def _may_view(app: str, model: str) -> Callable[[HttpRequest], bool]:
    return lambda request: access_in(request).may_somewhere(f"{app}.view_{model}")


def _is_at(names: str) -> Callable[[HttpRequest], bool]:
    """Whether a page is shown whose name begins so."""

    def is_at(request: HttpRequest) -> bool:
        match = request.resolver_match
        return match is not None and (match.url_name or "").startswith(names)

    return is_at


def _page(title: str, icon: str, name: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{name}")}


def _list(title: str, icon: str, app: str, model: str) -> dict[str, Any]:
    page = _page(title, icon, f"{app}_{model}_changelist")
    return {**page, "permission": _may_view(app, model)}


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Nano-LLM Engine",
    "SITE_HEADER": "Nano-LLM Engine",
    "SITE_SUBHEADER": "Operator console",
    "SITE_URL": None,
    "SITE_ICON": _static("console/logo.svg"),
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": _static("console/logo.svg")}
    ],
    "SHOW_VIEW_ON_SITE": False,
    "STYLES": [_static("console/console.css")],
    "BORDER_RADIUS": "8px",
    "COLORS": {
        "base": {
            "50": "oklch(98.4% .003 225)",
            "100": "oklch(96.5% .005 225)",
            "200": "oklch(92.4% .008 225)",
            "300": "oklch(86.6% .012 225)",
            "400": "oklch(70.4% .019 225)",
            "500": "oklch(53.8% .022 225)",
            "600": "oklch(43.8% .023 225)",
            "700": "oklch(36.6% .023 225)",
            "800": "oklch(27.4% .021 225)",
            "900": "oklch(20.2% .018 225)",
            "950": "oklch(13.6% .015 225)",
        },
        "primary": {
            "50": "oklch(97.8% .014 195)",
            "100": "oklch(94.6% .034 195)",
            "200": "oklch(89.6% .06 195)",
            "300": "oklch(83.2% .09 195)",
            "400": "oklch(76% .105 195)",
            "500": "oklch(67.4% .105 197)",
            "600": "oklch(51.6% .088 200)",
            "700": "oklch(44.4% .076 202)",
            "800": "oklch(38.2% .064 204)",
            "900": "oklch(33% .053 206)",
            "950": "oklch(24.4% .041 208)",
        },
    },
    "ACCOUNT": {"navigation": [{"title": "My account", "link": reverse_lazy("admin:account")}]},
    "SIDEBAR": {
        "show_search": False,
        "show_all_applications": False,
        "navigation": [
            {
                "items": [
                    _page("Overview", "monitoring", "index"),
                    _page("Playground", "forum", "playground"),
                    {
                        "title": "API reference",
                        "icon": "api",
                        "link": reverse_lazy("api-reference"),
                    },
                ],
            },
            {
                "title": "Models",
                "separator": True,
                "items": [
                    {
                        **_page("Guided rollout", "conversion_path", "guide"),
                        "permission": lambda request: access_in(request).may(
                            "registry.view_modelversion"
                        ),
                    },
                    _list("Registered models", "deployed_code", "registry", "registeredmodel"),
                    _list("Versions", "inventory_2", "registry", "modelversion"),
                    _list("Verifications", "fact_check", "registry", "verificationrun"),
                    _list("Imports", "move_to_inbox", "registry", "importjob"),
                    _list("Deployments", "rocket_launch", "deployments", "deployment"),
                    _list("Replicas", "stacks", "deployments", "replica"),
                    _list("Remote servers", "cloud", "deployments", "remoteserver"),
                    _list("Engine processes", "memory", "engines", "engineprocess"),
                    _list("Nodes", "dns", "engines", "node"),
                    _list("Routes", "alt_route", "routing", "route"),
                    {
                        **_list("Rollouts", "moving", "rollouts", "rollout"),
                        "badge": "apps.rollouts.badges.open_count",
                    },
                    _list("Quarantine", "coronavirus", "engines", "quarantinedrequest"),
                ],
            },
            {
                "title": "Comparing",
                "separator": True,
                "items": [
                    _list("Experiments", "science", "experiments", "experiment"),
                    _list("Layers", "layers", "experiments", "layer"),
                    _list("Judges", "balance", "judging", "judge"),
                    _list("Who took part", "group_work", "experiments", "assignment"),
                ],
            },
            {
                "title": "Access",
                "separator": True,
                "items": [
                    _list("Tenants", "apartment", "tenants", "tenant"),
                    _list("Plans", "speed", "tenants", "plan"),
                    _list("End users", "person_pin", "tenants", "enduser"),
                    _list("Members", "badge", "tenants", "membership"),
                    _list("Users", "group", "rbac", "user"),
                    _list("Roles", "admin_panel_settings", "rbac", "role"),
                    {
                        **_page("Access review", "fact_check", "access_review"),
                        "permission": lambda request: access_in(request).may("rbac.view_rolegrant"),
                    },
                    _list("Groups", "groups", "rbac", "groupmapping"),
                    _list("Sign-in", "passkey", "sign_in", "person"),
                    _list("Failed sign-ins", "lock_clock", "sign_in", "failedsignin"),
                    _list("API tokens", "key", "rbac", "apitoken"),
                    {
                        **_page("Access tokens", "token", "rbac_tokenfamily_changelist"),
                        "permission": _may_view("rbac", "apitoken"),
                    },
                ],
            },
            {
                "title": "Records",
                "separator": True,
                "items": [
                    {
                        **_page("Usage", "bar_chart", "metering_usage"),
                        "permission": _may_view("metering", "usagerecord"),
                    },
                    {
                        **_list("Ledger", "receipt_long", "metering", "usagerecord"),
                        "active": _is_at("metering_usagerecord"),  # not at the pages below it
                    },
                    {
                        **_page("Reconciliation", "balance", "metering_reconcile"),
                        "permission": lambda request: access_in(request).may(
                            "metering.view_usagerecord"
                        ),
                    },
                    _list("Feedback and events", "thumbs_up_down", "feedback", "metricevent"),
                    _list("Batches", "inventory", "batches", "batch"),
                    _list("Files", "draft", "batches", "uploadedfile"),
                    _list("Audit trail", "policy", "audit", "auditevent"),
                ],
            },
        ],
    },
}
