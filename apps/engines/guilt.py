"""Which requests kill engines, by who was there when engines died. Pure; no database.

That a request was there says little: with thirty others, most are innocent, and clients that were
cut off come back together. So what counts is whether anybody else explains the deaths.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

Death = tuple[str, int]  # an engine's name and its epoch

MIN_DEATHS: Final = 2
# That many are no chance any more, whoever else was there each time: fewer than open the breaker,
# which would end service for everybody.
CERTAIN_DEATHS: Final = 4


def guilty(presence: Iterable[tuple[str, Death]]) -> dict[str, int]:
    """Return how many deaths each guilty request was at. presence: who was at which death.

    Guilty is who was at two deaths or more, if nobody else was at all of those; or at four.
    """
    deaths_of: defaultdict[str, set[Death]] = defaultdict(set)
    present_at: defaultdict[Death, set[str]] = defaultdict(set)
    for request, death in presence:
        deaths_of[request].add(death)
        present_at[death].add(request)
    return {
        request: len(deaths)
        for request, deaths in deaths_of.items()
        if len(deaths) >= CERTAIN_DEATHS
        or (
            len(deaths) >= MIN_DEATHS
            and set.intersection(*(present_at[death] for death in deaths)) == {request}
        )
    }
