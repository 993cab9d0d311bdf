"""What an engine tells of itself when it is asked."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of values in the unit that the field's name says."""

    median: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """The last ``n_steps`` steps of an engine, and what their parts took. wait_ms: how long the
    latest admitted requests had queued."""

    n_steps: int
    step_ms: Spread
    schedule_ms: Spread
    forward_ms: Spread
    sample_ms: Spread
    update_ms: Spread
    wait_ms: Spread
    mean_sequences: float
    mean_decode_tokens: float
    mean_prefill_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStats:
    """What an engine keeps of its prefix cache below the KV pool, in host memory and on disk.

    Of blocks since its start: n_host_hits, n_disk_hits came back from there. n_dropped found no
    room, or no disk that took them; n_unreadable were not on disk as they had been written.
    """

    host_bytes: int
    host_bytes_total: int
    disk_bytes: int
    disk_bytes_total: int
    n_host_hits: int
    n_disk_hits: int
    n_spilled: int
    n_written: int
    n_host_evictions: int
    n_disk_evictions: int
    n_dropped: int
    n_unreadable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """A round trip through the step loop: counters since start unless the name says otherwise.

    n_blocks_free counts blocks that no sequence holds, those kept by the prefix cache included.
    n_drafted_tokens were guessed and computed, n_accepted_tokens of them were right.
    oldest_wait_ms: of those that wait now, batches' left out, how long the first has.
    is_asleep: without work, its memory on the GPU is given back; a request wakes it. is_given_back:
    all of it is. waits_for_memory: requests wait for it, and others that share the GPU have it.
    saved_bytes: of host memory, where its weights are kept once it has slept.
    """

    epoch: int
    draining: bool
    round_trip_s: float
    n_running: int
    n_waiting: int
    n_blocks_total: int
    n_blocks_free: int
    n_blocks_cached: int
    n_steps: int
    n_preemptions: int
    n_prompt_tokens: int
    n_cached_tokens: int
    n_completion_tokens: int
    n_finished: int
    n_aborted: int
    n_failed: int
    n_drafted_tokens: int
    n_accepted_tokens: int
    last_step_ms: float
    uptime_s: float
    rss_bytes: int
    steps: StepStats | None
    oldest_wait_ms: float = 0.0
    tiers: TierStats | None = None
    is_asleep: bool = False
    is_given_back: bool = False
    waits_for_memory: bool = False
    saved_bytes: int = 0
