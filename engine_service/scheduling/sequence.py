"""One answer as the scheduler sees it: its token ids, how many are computed, its blocks."""

import hashlib
import math
import struct
from array import array
from enum import Enum, auto

from engine_service.protocol import NO_STANDING, SamplingParams, Standing
from engine_service.scheduling.drafting import Drafter
from engine_service.scheduling.model_drafting import ModelDrafter
from engine_service.scheduling.sampling_state import SamplingState

_DIGEST_BYTES = 16
# Stands for a token that a step in flight is about to give.
ASSUMED_TOKEN = -1


class SequenceState(Enum):
    """PENDING: a fork that waits for its leader's prompt to be computed."""

    PENDING = auto()
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """Prompt and answer in one list of ids, of which the first ``n_computed`` are in the KV cache.

    Invariants: a running sequence has n_computed < len(token_ids), so that each step has something
    to compute for it; the K and V of token ``i`` are in block ``block_table[i // block_size]``; a
    sequence that is not running holds no block.

    A request for several answers is a leader and its forks. The leader computes the prompt; when
    its last token is computed the forks share its blocks, and each goes its own way. If one fails,
    all do.

    index: which of the request's answers it is, the leader's is 0. leader: None is itself.
    seniority: number of its first admission, kept when it is preempted. waited_s: until that one.
    expires_at_s: when it is to be given up if it waits then, on the scheduler's clock.
    cache_tags: by which the blocks that it leaves in the prefix cache can be purged.
    stepped_at: number of the last step in which it decoded while not everyone could.
    n_scored: first tokens of the prompt whose logits have been looked at, for prompt_logprobs.
    draws_plainly: its tokens depend on logits, temperature and seed alone, and nothing else is
    wanted of them.
    """

    __slots__ = (
        "_digests",
        "_salt_digest",
        "arrived_at_s",
        "block_table",
        "cache_tags",
        "drafters",
        "draws_plainly",
        "expires_at_s",
        "forks",
        "index",
        "key",
        "leader",
        "max_new_tokens",
        "n_cached",
        "n_computed",
        "n_prompt",
        "n_registered",
        "n_scored",
        "sampling",
        "sampling_state",
        "seed",
        "seniority",
        "standing",
        "state",
        "stepped_at",
        "token_ids",
        "waited_s",
    )

    def __init__(
        self,
        *,
        key: int,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams,
        max_new_tokens: int,
        cache_salt: str,
        seed: int,
        standing: Standing = NO_STANDING,
        sampling_state: SamplingState | None = None,
        index: int = 0,
        cache_tags: tuple[str, ...] = (),
    ) -> None:
        self.key = key
        self.index = index
        self.cache_tags = cache_tags
        self.leader: Sequence | None = None
        self.forks: tuple[Sequence, ...] = ()
        self.token_ids = list(prompt_token_ids)
        self.n_prompt = len(prompt_token_ids)
        self.sampling = sampling
        self.sampling_state = sampling_state
        self.drafters: tuple[Drafter | ModelDrafter, ...] = ()
        self.draws_plainly = sampling_state is None and _asks_for_a_token_alone(sampling)
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.standing = standing
        self.seniority: int | None = None
        self.arrived_at_s = 0.0
        self.waited_s = 0.0
        self.stepped_at = 0
        self.expires_at_s = math.inf
        self.state = SequenceState.WAITING
        self.block_table: list[int] = []
        self.n_computed = 0
        self.n_cached: int | None = None
        self.n_registered = 0
        self.n_scored = 0
        self._salt_digest = hashlib.blake2b(cache_salt.encode(), digest_size=_DIGEST_BYTES).digest()
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def n_generated(self) -> int:
        return len(self.token_ids) - self.n_prompt

    @property
    def n_uncomputed(self) -> int:
        return len(self.token_ids) - self.n_computed

    @property
    def is_decoding(self) -> bool:
        return self.n_uncomputed == 1

    @property
    def is_spent(self) -> bool:
        """True once it has all the tokens that it may have, one that is assumed counted."""
        return self.n_generated >= self.max_new_tokens

    @property
    def rank(self) -> tuple[int, int, int]:
        """Order of admitted sequences: who goes first comes first and is preempted last.

        Answers to one prompt stand next to each other.
        """
        seniority = -1 if self.seniority is None else self.seniority
        return (-self.standing.priority, seniority, self.index)

    @property
    def family(self) -> "tuple[Sequence, ...]":
        """All answers of the request."""
        leader = self if self.leader is None else self.leader
        return (leader, *leader.forks)

    @property
    def pending_forks(self) -> "tuple[Sequence, ...]":
        if not self.forks:
            return ()
        return tuple(fork for fork in self.forks if fork.state is SequenceState.PENDING)

    def lead(self, forks: "tuple[Sequence, ...]") -> None:
        """Make new sequences of the same prompt the forks of this one."""
        self.forks = forks
        for fork in forks:
            fork.leader = self
            fork.state = SequenceState.PENDING

    def follow(self, leader: "Sequence") -> None:
        """Start where the leader is; the caller has made its blocks held once more."""
        self.state = leader.state
        self.seniority = leader.seniority
        self.waited_s = leader.waited_s
        self.expires_at_s = leader.expires_at_s
        self.block_table = leader.block_table.copy()
        self.n_computed = leader.n_computed
        self.n_registered = leader.n_registered
        self.n_cached = leader.n_cached
        self.n_scored = leader.n_scored
        self._digests = leader._digests.copy()

    def block_digests(self, n_blocks: int, *, block_size: int) -> list[bytes]:
        """Return the hash chain over the first ``n_blocks`` full blocks.

        A digest stands for all tokens up to its block's end and for the salt, so that equal digests
        mean equal K and V, and tenants with different salts never share.
        """
        while len(self._digests) < n_blocks:
            start = len(self._digests) * block_size
            parent = self._digests[-1] if self._digests else self._salt_digest
            ids = array("q", self.token_ids[start : start + block_size])
            digest = hashlib.blake2b(parent + ids.tobytes(), digest_size=_DIGEST_BYTES)
            self._digests.append(digest.digest())
        return self._digests[:n_blocks]


def _asks_for_a_token_alone(sampling: SamplingParams) -> bool:
    is_filtered = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    return not is_filtered and sampling.logprobs is None and sampling.prompt_logprobs is None


def seed_of_choice(seed: int, *, index: int) -> int:
    """Return the seed of a request's answer: its own of the first, so that n changes nothing."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<qq", seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
