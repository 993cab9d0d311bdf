"""``python -m benchmarks.gateway.tenant`` makes a tenant whose every limit is counted and none is
reached, and prints a key of it."""

import django

django.setup()

from apps.rbac.models import ApiToken  # noqa: E402
from tests.factories.access import ApiTokenFactory, PlanFactory, TenantFactory  # noqa: E402


def token() -> ApiToken:
    plan = PlanFactory(
        requests_per_minute=10_000_000,
        tokens_per_day=10**12,
        tokens_per_month=10**13,
        max_concurrent_requests=100_000,
        max_context_tokens=4096,
        price_prompt="1.5",
        price_completion="6",
    )
    tenant = TenantFactory(plan=plan)
    found: ApiToken = ApiTokenFactory(tenant=tenant, secret=f"sk-nano-{'b' * 43}")
    return found


if __name__ == "__main__":
    print(token().secret)  # type: ignore[attr-defined]
