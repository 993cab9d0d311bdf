"""The manager of tenants' rows: a query that does not say whose it wants does not run. It says so
by a condition on the tenant, or on a row that is itself of one tenant."""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.db.models.expressions import Col
from django.db.models.lookups import Exact, In
from django.db.models.sql import Query
from django.db.models.sql.where import AND

from apps.core.tenancy import EVERY, every_tenant, whose_rows

_M = TypeVar("_M", bound=models.Model)


class TenantNotSaid(RuntimeError):
    """A mistake in our own code: a query of tenants' rows says neither whose nor that it means
    everybody's."""

    def __init__(self, model: type["TenantRows"]) -> None:
        super().__init__(
            f"A query of {model._meta.label} has no condition on whose rows it wants "
            f"({' or '.join(model.owner_paths)}); where it means every tenant's, do it within "
            "every_tenant(reason)."
        )


class TenantQuery(Query):
    """Compiles only with a condition on an owner among those that all must hold, or once it was
    said that there is none on purpose."""

    is_everybodys = False

    def get_compiler(self, *args: Any, **kwargs: Any) -> Any:
        self.owner_require()
        return super().get_compiler(*args, **kwargs)

    def chain(self, klass: Any = None) -> Any:
        if klass is not None:  # an UPDATE, which is no longer of this class
            self.owner_require()
        return super().chain(klass)

    def owner_require(self) -> None:
        """Raises TenantNotSaid."""
        if self.is_everybodys or whose_rows() is EVERY or self.is_empty():
            return
        if not self._says_whose():
            raise TenantNotSaid(self.model)  # type: ignore[arg-type]

    def _says_whose(self) -> bool:
        where = self.where
        if where.negated or where.connector != AND:
            return False
        owners = _owner_fields(self.model)
        return any(
            isinstance(child, Exact | In)
            and isinstance(child.lhs, Col)
            and child.lhs.target in owners
            for child in _flat(where)
        )


def _flat(where: Any) -> Iterator[Any]:
    """Yield the conditions that all must hold."""
    for child in where.children:
        if hasattr(child, "children"):
            if child.connector == AND and not child.negated:
                yield from _flat(child)
        else:
            yield child


class TenantQuerySet(models.QuerySet[_M]):
    def __init__(
        self, model: Any = None, query: Any = None, using: Any = None, hints: Any = None
    ) -> None:
        super().__init__(model, query or TenantQuery(model), using, hints)

    def of_tenants(self, tenant_ids: Collection[int] | None) -> Self:
        """Return the rows that somebody may see. tenant_ids: of these tenants; None is all, for
        who may see everybody's."""
        if tenant_ids is not None:
            return self.filter(**{f"{self.model.owner_paths[0]}__in": tenant_ids})  # type: ignore[attr-defined]
        rows = self.all()
        rows.query.is_everybodys = True  # type: ignore[attr-defined]
        return rows

    def _raw_delete(self, using: str | None) -> int:
        # The one way of Django's past ``chain``: it turns a copy into a DELETE in place.
        self.query.owner_require()  # type: ignore[attr-defined]
        return super()._raw_delete(using)


class TenantManager(models.Manager[_M]):
    def of_tenants(self, tenant_ids: Collection[int] | None) -> TenantQuerySet[_M]:
        return self.get_queryset().of_tenants(tenant_ids)

    def get_queryset(self) -> TenantQuerySet[_M]:
        return TenantQuerySet(self.model, using=self._db, hints=getattr(self, "_hints", None))


class TenantRows(models.Model):
    """Base of the models whose rows belong to tenants.

    owner_paths: by a condition on one of these a query says whose rows it wants: the tenant, or a
    row that is itself of one tenant. owner_sql: for the database, whether a row is of one of
    ``{tenants}``, an array; empty where the first path says it.
    """

    owner_paths: ClassVar[tuple[str, ...]] = ("tenant",)
    owner_sql: ClassVar[str] = ""

    objects: ClassVar[TenantManager[Self]] = TenantManager()

    class Meta:
        abstract = True

    def validate_unique(self, exclude: Any = None) -> None:
        with every_tenant("what is unique is unique among all tenants"):
            super().validate_unique(exclude)

    def validate_constraints(self, exclude: Any = None) -> None:
        with every_tenant("what is unique is unique among all tenants"):
            super().validate_constraints(exclude)


@cache
def _owner_fields(model: type[TenantRows]) -> frozenset[Any]:
    return frozenset(_field_at(model, path) for path in model.owner_paths)


def _field_at(model: type[models.Model], path: str) -> Any:
    """Return the field at the end of a path; raises FieldDoesNotExist."""
    *steps, name = path.split("__")
    for step in steps:
        related = model._meta.get_field(step).related_model
        if not isinstance(related, type):
            raise FieldDoesNotExist(f"{path} leads nowhere from {model.__name__}")
        model = related
    return model._meta.get_field(name)
