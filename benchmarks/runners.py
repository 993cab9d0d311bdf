"""How one job is run: straight over an engine's socket, or over HTTP streaming."""

import os

from apps.engines.client import EngineClient, SamplingParams, TokenPrompt
from benchmarks.sse import Server, stream_completion
from benchmarks.workload import Job, Runner, Timeline


def socket_runner(client: EngineClient) -> Runner:
    """Speak to an engine as the gateway does, without HTTP, access, routing and ledger."""
    counter = iter(range(10**9))

    async def run(job: Job, timeline: Timeline) -> None:
        request_id = f"bench-{os.getpid()}-{next(counter)}"
        await client.prepare(
            request_id=request_id,
            prompt=TokenPrompt(token_ids=job.prompt),
            sampling=SamplingParams(temperature=0.0, seed=job.seed, ignore_eos=True),
            max_tokens=job.n_new,
            cache_salt=request_id,
            timeout_s=60,
        )
        stream = await client.start(request_id, job.n_new)
        n_seen = 0
        async for delta in stream:
            timeline.saw(delta.n_tokens)
            n_seen += delta.n_tokens
        assert stream.result is not None
        if missing := stream.result.n_completion_tokens - n_seen:
            timeline.saw(missing)  # text that the last frame carried

    return run


def http_runner(server: Server) -> Runner:
    async def run(job: Job, timeline: Timeline) -> None:
        await stream_completion(server, job, timeline)

    return run
