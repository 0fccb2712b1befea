"""The optimising process: builds the index of a copied shard, on what nobody else needs of the CPU.

Runs as `python -m handlers.qdrant.edge_process FOLDER PARENT_PID NICENESS`, started by
edge_upkeep: the engine's `optimize()` keeps the GIL from its first to its last moment, so no
thread could do it. It exits with 0 once the copy is optimised and on the disk, with 3 if there
was nothing to do.

How many threads build it the engine asks of QDRANT_NUM_CPUS, or else of the machine; of 49 cores
and more it takes 12 or 16, of fewer 8 at most. `max_indexing_threads` of a collection's own vectors
is lost whenever the collection is opened without it, as it is here.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

import qdrant_edge as edge

from daemon.cores import usable_cores
from handlers.qdrant.edge_copy import sync_tree

NOTHING_TO_DO = 3
CPUS = "QDRANT_NUM_CPUS"
PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>."""


def main(argv: list[str]) -> int:
    """Optimise the shard in a folder that is this process's alone."""
    folder = Path(argv[0])
    if not _end_with(parent=int(argv[1])):
        return 1
    _give_way(int(argv[2]))
    # Before the engine looks: it goes by it for threads, and by those for the segments' sizes.
    os.environ.setdefault(CPUS, str(usable_cores()))
    shard = edge.EdgeShard.load(str(folder))
    has_changed = shard.optimize()
    shard.flush()
    shard.close()
    if not has_changed:
        return NOTHING_TO_DO
    sync_tree(folder)
    return 0


def _end_with(parent: int) -> bool:
    """Be killed when the parent dies, which no thread of ours could notice; False if it has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent


def _give_way(niceness: int) -> None:
    """Take what processor time is left over, and die first where memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(niceness)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
