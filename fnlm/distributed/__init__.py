"""Models on many processes: parameters that lie on several ranks, under every transform.

Each process (rank) runs the same program; `shard` replaces the leaves of a tree by ones that hold a
rank's part, and no line of a model or an optimizer knows. The engine is torch's own: `torchrun`,
its process groups, `torch.distributed.checkpoint`. Everything runs in one process as well, where
nothing is communicated.
"""

from fnlm.distributed._messages import Message, messages
from fnlm.distributed.batch import data_parallel, own_rows
from fnlm.distributed.collectives import (
    gather_own,
    gather_same,
    own_part,
    replicate,
    scatter_sum,
    sum,
)
from fnlm.distributed.groups import rank, session, size
from fnlm.distributed.placed import Placed, Replicated, Sharded, Split
from fnlm.distributed.plans import (
    Placement,
    fully_sharded,
    gather,
    replicated,
    scatter,
    shard,
    tensor_parallel,
    where,
)
from fnlm.distributed.saving import load_state, save_state
from fnlm.distributed.together import collect, distribute, every, on_first, processes

__all__ = [
    "Message", "Placed", "Placement", "Replicated", "Sharded", "Split", "collect", "data_parallel",
    "distribute", "every", "fully_sharded", "gather", "gather_own", "gather_same", "load_state",
    "messages", "on_first", "own_part", "own_rows", "processes", "rank", "replicate", "replicated",
    "save_state", "scatter", "scatter_sum", "session", "shard", "size", "sum", "tensor_parallel",
    "where",
]  # fmt: skip
