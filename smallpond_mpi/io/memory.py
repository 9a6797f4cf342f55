"""Which allocator Arrow takes memory from in the processes of tasks.

Arrow reads its variable once, when it is loaded; the processes of tasks are forked from one in which it is loaded already, so they choose again.
"""

import pyarrow as pa

from smallpond_mpi.common import InvalidArgument

MEMORY_POOL_VARIABLE = "ARROW_DEFAULT_MEMORY_POOL"
_POOLS = {
    "system": pa.system_memory_pool,
    "jemalloc": pa.jemalloc_memory_pool,
    "mimalloc": pa.mimalloc_memory_pool,
}


def check_memory_pool(name: str) -> None:
    """Raise InvalidArgument unless this Arrow has the pool."""
    supported = pa.supported_memory_backends()
    if name not in _POOLS or name not in supported:
        raise InvalidArgument(f"memory_allocator={name!r}: this pyarrow has {', '.join(supported)}")


def use_memory_pool(name: str | None) -> None:
    """Make this the default pool of this process; None, and names that Arrow would not know either, leave it as it is."""
    if name in _POOLS and name in pa.supported_memory_backends():
        pa.set_memory_pool(_POOLS[name]())
