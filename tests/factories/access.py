"""Tenants, members, users and tokens."""

import hashlib
from datetime import timedelta
from typing import Any

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.rbac.models import ApiToken, GroupMapping, Role, RoleGrant, TokenFamily, User
from apps.tenants.models import EndUser, Membership, Plan, Tenant
from tests.rows import all_of


class PlanFactory(DjangoModelFactory[Plan]):
    """Without limits."""

    class Meta:
        model = Plan

    name = factory.Sequence(lambda n: f"Plan {n}")
    slug = factory.Sequence(lambda n: f"plan-{n}")


class TenantFactory(DjangoModelFactory[Tenant]):
    class Meta:
        model = Tenant

    name = factory.Sequence(lambda n: f"Tenant {n}")
    slug = factory.Sequence(lambda n: f"tenant-{n}")
    cache_salt = factory.Sequence(lambda n: f"{n:064x}")
    plan = factory.SubFactory(PlanFactory)


class EndUserFactory(DjangoModelFactory[EndUser]):
    class Meta:
        model = EndUser

    tenant = factory.SubFactory(TenantFactory)
    identifier = factory.Sequence(lambda n: f"person-{n}")


class UserFactory(DjangoModelFactory[User]):
    """``password`` is given in the clear and defaults to "pass-word-1"."""

    class Meta:
        model = User
        skip_postgeneration_save = True

    class Params:
        admin = factory.Trait(is_staff=True, is_superuser=True)

    username = factory.Sequence(lambda n: f"user{n}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.com")

    @classmethod
    def _create(cls, model_class: type[User], *args: Any, **kwargs: Any) -> User:
        password = kwargs.pop("password", "pass-word-1")
        user = model_class(*args, **kwargs)
        user.set_password(password)
        user.save()
        return user


class RoleFactory(DjangoModelFactory[Role]):
    """Of one's own, without permissions."""

    class Meta:
        model = Role

    name = factory.Sequence(lambda n: f"Role {n}")
    slug = factory.Sequence(lambda n: f"role-{n}")


class GroupMappingFactory(DjangoModelFactory[GroupMapping]):
    """``role``: a role, or the slug of one that comes with the platform. Everywhere, unless a
    ``tenant`` is given."""

    class Meta:
        model = GroupMapping

    group = factory.Sequence(lambda n: f"group-{n}")

    @classmethod
    def _create(cls, model_class: type[GroupMapping], *args: Any, **kwargs: Any) -> GroupMapping:
        role = kwargs.pop("role", "viewer")
        if isinstance(role, str):
            role = Role.objects.get(slug=role)
        mapping = model_class(*args, role=role, **kwargs)
        mapping.save()
        return mapping


class MembershipFactory(DjangoModelFactory[Membership]):
    """``role``: the slug of one that comes with the platform, or None."""

    class Meta:
        model = Membership

    tenant = factory.SubFactory(TenantFactory)
    user = factory.SubFactory(UserFactory)

    @classmethod
    def _create(cls, model_class: type[Membership], *args: Any, **kwargs: Any) -> Membership:
        role = kwargs.pop("role", "developer")
        membership = model_class(*args, **kwargs)
        membership.save()
        if role is not None:
            RoleGrant.objects.create(role=Role.objects.get(slug=role), membership=membership)
        return membership


class ApiTokenFactory(DjangoModelFactory[ApiToken]):
    """``secret`` may be given; it is what a client sends, and is on the instance afterwards."""

    class Meta:
        model = ApiToken

    tenant = factory.SubFactory(TenantFactory)
    name = factory.Sequence(lambda n: f"token {n}")

    @classmethod
    def _create(cls, model_class: type[ApiToken], *args: Any, **kwargs: Any) -> ApiToken:
        n = all_of(ApiToken).count()
        secret = kwargs.pop("secret", f"sk-nano-{n:06d}{'x' * 37}")
        token = model_class(
            *args,
            prefix=secret[:14],
            digest=hashlib.sha256(secret.encode()).hexdigest(),
            **kwargs,
        )
        token.save()
        token.secret = secret  # type: ignore[attr-defined]
        return token


class TokenFamilyFactory(DjangoModelFactory[TokenFamily]):
    """In force for a day; nobody has its tokens."""

    class Meta:
        model = TokenFamily

    api_token = factory.SubFactory(ApiTokenFactory)
    public_id = factory.Sequence(lambda n: f"family-{n}")
    scopes = factory.LazyFunction(lambda: ["inference"])
    expires_at = factory.LazyFunction(lambda: timezone.now() + timedelta(days=1))
