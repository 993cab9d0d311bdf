"""Who is in which arm: pure functions of salts and names. Nothing is stored to know it, so that
every process says the same at once, and again years later.

A layer has ``N_SLOTS`` slots; a subject falls into one of them by a hash under the layer's salt.
Experiments of a layer hold disjoint slots. Within an experiment a hash under its own salt says the
arm; salts are drawn at random, so that experiments of different layers are independent.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from math import log
from typing import Final

N_SLOTS: Final = 10_000  # of a layer
DIGEST_CHARS: Final = 16  # hexadecimal: 64 bits; among 10 million subjects two meet once in 370,000

Slots = Sequence[tuple[int, int]]  # ranges [first, end), ascending, disjoint


def subject_digest(*, salt: str, kind: str, tenant_id: int, identifier: str) -> str:
    """Return what stands for a subject in an experiment: 16 hexadecimal digits, which say nothing
    without the experiment's salt. kind: of ``Experiment.Subject``; the same name in another tenant
    or of another kind is another subject."""
    return _hash(salt, f"{kind}\0{tenant_id}\0{identifier}").hex()


def subject_slot(*, layer_salt: str, kind: str, tenant_id: int, identifier: str) -> int:
    """Return the slot of the layer that a subject falls into, from 0 to ``N_SLOTS`` - 1."""
    drawn = _hash(layer_salt, f"{kind}\0{tenant_id}\0{identifier}")
    return int.from_bytes(drawn) % N_SLOTS


def variant_of(*, salt: str, subject: str, weights: Mapping[int, int]) -> int:
    """Return the arm of a subject, a key of ``weights``, which are whole numbers above 0.

    Highest random weight (Thaler and Ravishankar, "Using name-based mappings to increase hit
    rates", IEEE/ACM Transactions on Networking 6(1), 1998) with weights: each arm draws u in (0, 1)
    for the subject and scores -w / ln(u); the highest wins. -ln(u) / w is exponential with rate w,
    and the least of independent exponentials is arm i's with probability w_i / sum(w). Since an
    arm's score depends on no other arm, a weight that grows only draws subjects to its arm, one
    that shrinks only lets them go, and nobody moves between two arms whose weights stay.
    """
    return max(weights, key=lambda arm: (_score(salt, subject, arm, weights[arm]), arm))


def is_within(slot: int, slots: Slots) -> bool:
    return any(first <= slot < end for first, end in slots)


def n_slots(slots: Slots) -> int:
    return sum(end - first for first, end in slots)


def slots_of_share(percent: float) -> int:
    """Return how many slots a share of subjects is: hundredths of a percent, one at least."""
    return max(1, round(percent * N_SLOTS / 100))


def free_slots(held: Iterable[Slots], *, n_held_out: int) -> list[tuple[int, int]]:
    """Return what is left of a layer. held: what each experiment has; the first ``n_held_out``
    slots are in none, ever."""
    taken = sorted(each for slots in held for each in slots)
    free, at = [], n_held_out
    for first, end in taken:
        if first > at:
            free.append((at, first))
        at = max(at, end)
    if at < N_SLOTS:
        free.append((at, N_SLOTS))
    return free


def slots_taken(free: Slots, *, n: int) -> list[tuple[int, int]]:
    """Return the first ``n`` of the free slots; fewer where there are no more."""
    taken, left = [], n
    for first, end in free:
        if left <= 0:
            break
        taken.append((first, min(end, first + left)))
        left -= end - first
    return taken


def slots_joined(*parts: Slots) -> list[tuple[int, int]]:
    """Return the ranges of all of them, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(each for slots in parts for each in slots):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return joined


def _hash(salt: str, text: str) -> bytes:
    """Return 64 bits of BLAKE2b with the salt as its key (RFC 7693, section 2.9)."""
    return blake2b(
        text.encode(errors="surrogatepass"), digest_size=DIGEST_CHARS // 2, key=salt.encode()
    ).digest()


def _score(salt: str, subject: str, arm: int, weight: int) -> float:
    drawn = int.from_bytes(_hash(salt, f"{subject}\0{arm}")) >> 12
    # 52 bits and a half of the next: never 0 and never 1 as a float.
    return -weight / log((drawn + 0.5) / 2.0**52)
