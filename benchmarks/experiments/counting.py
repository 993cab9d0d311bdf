"""How fast requests of experiments are counted: a ledger of N rows and a tenth as many subjects,
made in a database of its own, counted as the worker does.

DATABASE_URL=... python -m benchmarks.experiments.counting [--rows 1000000]
"""

import argparse
import os
import time

import django


def ledger_fill(experiment_id: int, variants: tuple[int, int], *, n_rows: int, route: str) -> None:
    """Write settled rows of n_rows / 10 people in 20 tenants, by the database itself."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO metering_usagerecord (
              request_id, attempt, is_fallback, tenant_id, end_user, door, endpoint, route_name,
              experiment_arm, rollout_arm, deployment_id, model_version_id, engine_name,
              engine_epoch, state, outcome, finish_reason, error_code, n_prompt_tokens,
              n_reserved_tokens, meter_ids, n_charged_tokens, n_cached_tokens,
              n_completion_tokens, prompt_micro, cached_micro, completion_micro, cost_micro,
              ttft_ms, total_ms, created_at, expires_at, settled_at, is_from_cache,
              is_rolled_up, is_in_experiments, is_in_rollout)
            SELECT 'req-' || lpad(to_hex(n), 32, '0'), 1, false, 1 + p %% 20, 'person-' || p,
              'rest', 'chat.completions', %s,
              'e' || %s || '.v' || (CASE WHEN p %% 2 = 0 THEN %s ELSE %s END) || '.'
                || lpad(to_hex(p), 16, '0'),
              '', 1, 1, 'engine', 1, 'settled',
              CASE WHEN n %% 50 = 0 THEN 'failed' ELSE 'completed' END, 'stop', '', 30, 80, '[]',
              80, 0, 1 + n %% 300, 0, 0, 0, n %% 5000, 100 + random() * 50,
              900 + random() * 500, now(), now(), now(), false, true, false, false
            FROM (
              SELECT n, (n::bigint * 7919) %% %s AS p FROM generate_series(1, %s) AS n
            ) AS numbers
            """,
            [route, experiment_id, *variants, n_rows // 10, n_rows],
        )
        cursor.execute("ANALYZE metering_usagerecord")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    n_rows = parser.parse_args().rows
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.test")
    django.setup()
    from django.core.management import call_command
    from django.utils import timezone

    from apps.core.tenancy import every_tenant
    from apps.experiments.counting import requests_count, rows_count
    from apps.experiments.models import Assignment, Experiment, ExperimentMetric, Layer, Variant
    from apps.experiments.summary import experiment_results
    from apps.routing.models import Route

    call_command("migrate", verbosity=0)
    layer = Layer.objects.create(name="bench", salt="layer")
    experiment = Experiment.objects.create(
        name="bench", route=Route.objects.create(name="bench"), layer=layer, salt="salt",
        state="running", started_at=timezone.now(), weights_set_at=None,
    )  # fmt: skip
    arms = [
        Variant.objects.create(experiment=experiment, name=name, is_control=name == "control")
        for name in ("control", "b")
    ]
    roles = {"latency": "primary", "error_rate": "guardrail"}
    for metric in ("latency", "error_rate", "ttft", "completion_tokens", "cost"):
        ExperimentMetric.objects.create(
            experiment=experiment, metric=metric, better="lower",
            role=roles.get(metric, "secondary"),
        )  # fmt: skip
    with every_tenant("a benchmark"):
        ledger_fill(
            experiment.pk, (arms[0].pk, arms[1].pk), n_rows=n_rows, route=experiment.route.name
        )
        requests_count(limit=1000)  # the first one plans and compiles
        started = time.perf_counter()
        done = 0
        while n_counted := rows_count(rows_at_most=20_000):
            done += n_counted
            spent = time.perf_counter() - started
            print(f"{done:>9,} rows in {spent:7.1f} s: {done / spent:,.0f} a second", flush=True)
        n_subjects = Assignment.objects.filter(experiment=experiment).count()
        started = time.perf_counter()
        found = experiment_results(experiment)
        print(f"{n_subjects:,} subjects; results in {1e3 * (time.perf_counter() - started):.0f} ms")
        print(found.verdict.headline)


if __name__ == "__main__":
    main()
