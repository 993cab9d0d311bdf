"""Programmatic dependent launch: a kernel is started while the one before it still ends, and loads
what does not depend on that one
(https://docs.nvidia.com/cuda/cuda-c-programming-guide/#programmatic-dependent-launch).

What every kernel that takes part keeps to, so that no other care is needed:

- Before it waits it reads only what no kernel of the chain writes: weights, tables, and of the KV
  pool the tokens of earlier steps. It writes nothing.
- Some program of it waits, in all cases. A wait is over when the kernel before is complete and what
  it wrote can be seen. As that kernel had waited in turn, so is every one before it: what comes
  after a wait is ordered after all that was launched earlier. So a buffer may also be written again
  although a kernel several steps back had read it.
- The launch before a chain's first kernel is an ordinary one. It starts when all before it is
  complete, so that only its own output has to be waited for: to the kernels of the chain anything
  older can be seen even before they wait, whichever of them starts first.
"""

import torch

from engine_service.kernels.triton.gpu import gpu_of

# Off in benchmarks and tests that compare.
IS_ON = True


def is_dependent(device: torch.device) -> bool:
    """Return whether kernels there take part: on Hopper and newer, and not in the interpreter."""
    return IS_ON and gpu_of(device).capability >= (9, 0)
