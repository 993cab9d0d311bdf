"""What the process of ``process`` is made of, once its Django is configured."""

import json
from typing import Any

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.http import HttpResponse
from django.urls import include, path
from oauth2_provider.oauth2_validators import OAuth2Validator

from tests.identity_provider.process import PASSWORD


def people() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((settings.PEOPLE_DIRECTORY / "people.json").read_text())
    return found


class PeopleBackend(ModelBackend):
    def authenticate(
        self, request: Any, username: Any = None, password: Any = None, **_: Any
    ) -> Any:
        if username not in people() or password != PASSWORD:
            return None
        return User.objects.get_or_create(username=username)[0]


class PeopleValidator(OAuth2Validator):  # type: ignore[misc]
    oidc_claim_scope = None  # all of them

    def get_additional_claims(self, request: Any) -> dict[str, Any]:
        return {**people()[request.user.username], "sub": request.user.username}


urlpatterns = [
    path("favicon.ico", lambda request: HttpResponse()),  # or browsers complain
    path("login/", LoginView.as_view()),
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
]
