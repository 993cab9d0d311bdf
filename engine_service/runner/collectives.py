"""What the ranks of a tensor-parallel engine compute together."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import Tensor, distributed

from engine_service.errors import EngineLost
from engine_service.models.shard import Shard

# Its name until torch 2.12 was the other, and is deprecated since.
_all_gather: Final = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)
# Far more than any step takes. A rank that died is noticed at once and otherwise: by its socket.
_TIMEOUT: Final = timedelta(seconds=60)


class Collectives:
    """Joins the group when made, once in a process, and waits until all ranks have.

    rendezvous: a file of no bytes that all ranks have open under this number; they find each other
    by what they write there, so that no port and no name is agreed on. All are on one machine:
    nothing listens on another interface than the loopback.
    """

    def __init__(self, shard: Shard, *, rendezvous: int, device: torch.device) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        self._n_ranks = shard.n_ranks
        is_cuda = device.type == "cuda"
        store = distributed.FileStore(  # type: ignore[attr-defined]  # torch forgot to export it
            f"/proc/self/fd/{rendezvous}", shard.n_ranks
        )
        distributed.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=store,
            rank=shard.rank,
            world_size=shard.n_ranks,
            timeout=_TIMEOUT,
            device_id=device if is_cuda else None,
        )

    def reduce(self, x: Tensor) -> Tensor:
        """Return the sum of all ranks' ``x``, in place and of its type: in bfloat16 each summand
        and the sum are rounded, where one rank alone rounds once.

        Raises:
            EngineLost: a rank is gone, or did not come in time.
        """
        try:
            distributed.all_reduce(x)
        except RuntimeError as error:
            raise EngineLost(f"the ranks cannot add up: {error}") from error
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Return (n, n_ranks * m) on all ranks of what each has, (n, m): rank 0's columns first.
        Raises EngineLost likewise."""
        n_rows, n_columns = x.shape
        found = x.new_empty(self._n_ranks * n_rows, n_columns)
        if n_rows:
            try:
                _all_gather(found, x.contiguous())
            except RuntimeError as error:
                raise EngineLost(f"the ranks cannot put together: {error}") from error
        return found.view(self._n_ranks, n_rows, n_columns).transpose(0, 1).flatten(1)

    def share(self, x: Tensor) -> None:
        """Have all ranks hold in ``x`` what rank 0 does. Raises EngineLost likewise."""
        try:
            distributed.broadcast(x, src=0)
        except RuntimeError as error:
            raise EngineLost(f"the ranks cannot tell each other: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A rank while it loads. agree: takes how many KV blocks this rank has room for, waits for the
    others, and gives how many each of them is to have."""

    shard: Shard
    collectives: Collectives
    agree: Callable[[int], int]
