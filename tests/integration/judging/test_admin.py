"""The pages of judges: what they show, who may change what, and what they ask first."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.judging.models import AnswerSample, Judge
from apps.tenants.models import Membership
from tests.factories import (
    AnswerSampleFactory,
    ApiTokenFactory,
    ExperimentFactory,
    ExperimentMetricFactory,
    JudgeFactory,
    MembershipFactory,
    RouteFactory,
    TenantFactory,
)
from tests.integration.console.pages import actions, messages, person, staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db

LIST = "/admin/judging/judge/"
ADD = f"{LIST}add/"
OPERATOR = ("view_judge", "add_judge", "change_judge", "delete_judge", "view_route")


def page_of(judge: Judge) -> str:
    return reverse("admin:judging_judge_change", args=[judge.pk])


def form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "kind", "rubric": "5: helps. 1: does not.", "lowest": "1", "highest": "5",
        "sample_percent": "100", "per_day": "1000", "is_on": "on", **fields,
    }  # fmt: skip


def state() -> list[Any]:
    return [*Judge.objects.values(), *all_of(AnswerSample).values(), *all_of(AuditEvent).values()]


def test_the_list_says_how_each_stands(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    judge = JudgeFactory(
        name="kind", route=RouteFactory(name="strict"), n_taken=1200, n_scored=1190, n_failed=7,
        last_problem="It said 'nine', which is no score.", rubric="5: helps.\n" + "so much " * 40,
    )  # fmt: skip
    JudgeFactory(is_on=False)
    JudgeFactory(api_token=None)
    for _ in range(3):
        AnswerSampleFactory(judge=judge)
    with django_assert_max_num_queries(12):
        html = admin_client.get(LIST).content.decode()
    for text in ("kind", "strict", "1-5", "1190", "5: helps. so much", "which is no score", "Off"):
        assert text in html
    assert "No token" in html
    [row] = [row for row in admin_client.get(LIST).context["cl"].result_list if row == judge]
    assert row.n_waiting == 3


def test_one_is_made_and_changed(admin_client: Client) -> None:
    route, token = RouteFactory(name="strict"), ApiTokenFactory()
    made = admin_client.post(ADD, form(route=route.pk, api_token=token.pk))
    assert made["Location"] == LIST
    judge = Judge.objects.get()
    assert (judge.name, judge.route, judge.api_token) == ("kind", route, token)
    page = admin_client.get(page_of(judge)).content.decode()
    assert 'name="rubric"' in page and "So far" in page
    sent = form(route=route.pk, api_token=token.pk, per_day="9", rubric="5: short. 1: long.")
    admin_client.post(page_of(judge), sent)
    judge.refresh_from_db()
    assert (judge.per_day, judge.rubric, judge.version) == (9, "5: short. 1: long.", 2)
    assert actions() == ["judge.created", "judge.updated"]


def test_what_scores_are_made_by_is_shown_and_not_asked(admin_client: Client) -> None:
    judge = JudgeFactory(name="kind", n_taken=4, rubric="5: helps.")
    AnswerSampleFactory(judge=judge)
    html = admin_client.get(page_of(judge)).content.decode()
    assert "5: helps." in html
    for name in ("name", "rubric", "lowest", "highest", "route", "sample_percent"):
        assert f'name="{name}"' not in html, name
    for name in ("per_day", "is_on", "api_token"):
        assert f'name="{name}"' in html, name
    sent = form(rubric="5: flatters.", per_day="3", api_token=judge.api_token_id)
    admin_client.post(page_of(judge), sent)
    judge.refresh_from_db()
    assert (judge.rubric, judge.per_day) == ("5: helps.", 3)


def test_what_is_wrong_is_said_at_its_field(admin_client: Client) -> None:
    sent = form(route=RouteFactory().pk, lowest="5", rubric="x" * 8001)
    html = admin_client.post(ADD, sent).content.decode()
    assert "at most 8000 characters" in html
    assert "It must be above the lowest score." in html
    assert "is violated" not in html
    html = admin_client.post(ADD, form(route=987654)).content.decode()
    assert "not one of the available choices" in html
    assert state() == []


def test_a_refusal_of_the_service_is_said_and_changes_nothing(admin_client: Client) -> None:
    route = RouteFactory().pk
    batches = ApiTokenFactory(scopes=["batches"])
    admin_client.post(ADD, form(route=route, api_token=batches.pk))
    assert messages(admin_client, LIST) == ["It is not, or no more, for inference."]
    assert state() == []


# -- whose token -------------------------------------------------------------------------------


def test_who_may_not_issue_tokens_chooses_none() -> None:
    _, client = person(*OPERATOR)
    route, token = RouteFactory(), ApiTokenFactory(name="secret-thing")
    html = client.get(ADD).content.decode()
    assert 'name="api_token"' not in html
    client.post(ADD, form(route=route.pk, api_token=token.pk))
    assert Judge.objects.get().api_token is None
    lent = JudgeFactory(name="lent", api_token=token)
    html = client.get(page_of(lent)).content.decode()
    assert "secret-thing" not in html and token.prefix not in html
    client.post(page_of(lent), form(name="lent", route=lent.route_id, per_day="2"))
    lent.refresh_from_db()
    assert (lent.per_day, lent.api_token) == (2, token)


def member(*codenames: str) -> tuple[Membership, Client]:
    """Somebody who keeps judges everywhere, and is a developer in one tenant."""
    user, client = person(*codenames)
    return MembershipFactory(user=user, role="developer"), client


def test_tokens_are_those_that_one_could_issue() -> None:
    developer, client = member(*OPERATOR)
    tenant = developer.tenant
    mine = ApiTokenFactory(tenant=tenant, owner=developer.user)
    tenants_own, other = ApiTokenFactory(tenant=tenant), ApiTokenFactory()
    route = RouteFactory()
    html = client.post(ADD, form(route=route.pk, api_token=other.pk)).content.decode()
    assert "not one of the available choices" in html
    client.post(ADD, form(route=route.pk, api_token=tenants_own.pk))
    [said] = messages(client, LIST)
    assert "everywhere" in said
    assert state() == []
    client.post(ADD, form(route=route.pk, api_token=mine.pk))
    assert Judge.objects.get().api_token == mine
    theirs = JudgeFactory(api_token=other)
    assert 'name="api_token"' not in client.get(page_of(theirs)).content.decode()


# -- deleting ----------------------------------------------------------------------------------


def test_deleting_asks_and_takes_what_waits_along(admin_client: Client) -> None:
    judge = JudgeFactory(name="kind")
    AnswerSampleFactory(judge=judge)
    url = reverse("admin:judging_judge_delete", args=[judge.pk])
    assert "kind, and 1 answers that wait for it" in admin_client.get(url).content.decode()
    assert Judge.objects.exists()
    admin_client.post(url, {"post": "yes"})
    assert not Judge.objects.exists()
    assert not all_of(AnswerSample).exists()
    assert actions() == ["judge.deleted"]


@pytest.mark.parametrize("way", ["page", "action"])
def test_what_an_experiment_counts_is_not_deleted(admin_client: Client, way: str) -> None:
    judge = JudgeFactory(name="kind")
    draft = ExperimentFactory(name="cooler")
    ExperimentMetricFactory(experiment=draft, metric="judge:kind")
    before = state()
    if way == "page":
        url = reverse("admin:judging_judge_delete", args=[judge.pk])
        admin_client.post(url, {"post": "yes"})
    else:
        sent = {"action": "delete_selected", "_selected_action": [judge.pk], "post": "yes"}
        admin_client.post(LIST, sent)
    [said] = messages(admin_client, LIST)
    assert said == "kind is what experiment cooler counts; stop or change it first."
    assert state() == before


@pytest.mark.parametrize(
    ("held", "path", "sent"),
    [
        ((), "list", None),
        (("view_judge",), "add", form()),
        (("view_judge",), "change", form(per_day="2")),
        (("view_judge", "change_judge"), "delete", {"post": "yes"}),
    ],
)
def test_each_page_needs_its_permission(
    held: tuple[str, ...], path: str, sent: dict[str, Any] | None
) -> None:
    judge = JudgeFactory()
    urls = {
        "list": LIST, "add": ADD, "change": page_of(judge),
        "delete": reverse("admin:judging_judge_delete", args=[judge.pk]),
    }  # fmt: skip
    client, before = staff(*held), state()
    response = client.get(urls[path]) if sent is None else client.post(urls[path], sent)
    assert response.status_code == 403
    assert state() == before


def test_a_role_in_a_tenant_shows_no_judge() -> None:
    user = MembershipFactory(tenant=TenantFactory(), role="owner", user__is_staff=True).user
    client = Client()
    client.force_login(user)
    assert client.get(LIST).status_code == 403
