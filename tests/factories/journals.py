"""What an engine recorded, as the agent of its machine has read it."""

from datetime import timedelta

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.engines.models import EngineJournal, JournalEntry


class EngineJournalFactory(DjangoModelFactory[EngineJournal]):
    class Meta:
        model = EngineJournal

    name = factory.Sequence(lambda n: f"e1-4-{n:x}")
    engine_name = "m-0"
    epoch = 4
    read_at = factory.LazyFunction(timezone.now)
    complete_since = factory.LazyFunction(lambda: timezone.now() - timedelta(days=1))


class JournalEntryFactory(DjangoModelFactory[JournalEntry]):
    class Meta:
        model = JournalEntry

    journal = factory.SubFactory(EngineJournalFactory)
    key = factory.Sequence(lambda n: n + 1)
    request_id = factory.Sequence(lambda n: f"req-{n:032x}")
    n_prompt_tokens = 10
    n_cached_tokens = 8
    n_completion_tokens = 12
    finish_reason = "stop"
    first_step = 70
    last_step = 81
    waited_ms = 3.0
    started_at = factory.LazyFunction(timezone.now)
    first_token_at = factory.LazyAttribute(lambda entry: entry.started_at + timedelta(seconds=1))
    ended_at = factory.LazyAttribute(lambda entry: entry.started_at + timedelta(seconds=2))
    read_at = factory.LazyFunction(lambda: timezone.now() - timedelta(minutes=2))
