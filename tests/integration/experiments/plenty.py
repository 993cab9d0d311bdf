"""Many rows of the ledger at once, drawn as people would make them."""

import random
from collections.abc import Mapping
from datetime import timedelta

from apps.experiments.assigning import subject_digest, variant_of
from apps.experiments.models import Experiment
from apps.metering.models import UsageRecord
from tests.factories import UsageRecordFactory
from tests.integration.experiments.made import NOON, variants
from tests.rows import all_of


def plenty(
    made: Experiment,
    *,
    n_people: int,
    n_requests: int = 2,
    slower: Mapping[str, float] | None = None,
    failing: Mapping[str, float] | None = None,
    n_tenants: int = 1,
    seed: int = 1,
    first: int = 0,
) -> list[UsageRecord]:
    """Let people ask; each is assigned as the product does. slower: factors of latency by arm;
    failing: parts of the requests."""
    rng = random.Random(seed)
    arms = {each.pk: each for each in variants(made)}
    weights = {pk: each.weight for pk, each in arms.items()}
    rows = []
    for place in range(first, first + n_people):
        person, tenant_id = f"person-{place}", 1 + place % n_tenants
        digest = subject_digest(
            salt=made.salt, kind=made.subject, tenant_id=tenant_id, identifier=person
        )
        arm = arms[variant_of(salt=made.salt, subject=digest, weights=weights)]
        own = rng.lognormvariate(0, 0.2)
        for turn in range(n_requests):
            total_ms = 900 * own * rng.lognormvariate(0, 0.2) * (slower or {}).get(arm.name, 1.0)
            is_failed = rng.random() < (failing or {}).get(arm.name, 0.0)
            rows.append(
                UsageRecordFactory.build(
                    request_id=f"req-{made.pk:x}-{place:020x}{turn:012x}",
                    tenant_id=tenant_id,
                    end_user=person,
                    route_name=made.route.name,
                    experiment_arm=f"e{made.pk}.v{arm.pk}.{digest}",
                    outcome="failed" if is_failed else "completed",
                    finish_reason="" if is_failed else "stop",
                    ttft_ms=total_ms / 10,
                    total_ms=total_ms,
                    created_at=NOON + timedelta(seconds=place + turn),
                )
            )
    return list(all_of(UsageRecord).bulk_create(rows, batch_size=500))
