"""Which allocator Arrow takes memory from in the processes of tasks, and how much of it a DuckDB that only reads data may take there.

Arrow reads its variable once, when it is loaded; the processes of tasks are forked from one in which it is loaded already, so they choose again.
"""

import pyarrow as pa

from smallpond_mpi.common import InvalidArgument

MEMORY_POOL_VARIABLE = "ARROW_DEFAULT_MEMORY_POOL"
DEFAULT_MEMORY_POOL = "system"
"""A process that works through one batch after the other gets the memory of the last one again from glibc's malloc. With mimalloc, Arrow's own choice, the kernel
had to clear twice as much for a hash partition (shuffle 6.3 s instead of 5.6 s), and processes without work held 470 MB instead of 160.
"""
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


_duckdb_bytes: int | None = None


def limit_duckdb(limit_bytes: int | None) -> None:
    """Let every DuckDB that reads data in this process from now on take so much, and write nothing to disk; None for DuckDB's own choice."""
    global _duckdb_bytes
    _duckdb_bytes = limit_bytes


def duckdb_limits() -> dict[str, str]:
    """Settings of a DuckDB by `limit_duckdb`: what it would choose itself is 80% of the machine, and `.tmp` in the working directory."""
    return {} if _duckdb_bytes is None else {"memory_limit": f"{_duckdb_bytes} B", "temp_directory": ""}


LEAST_JSON_BYTES = 16 << 20
"""DuckDB's own choice."""


def json_object_bytes() -> int | None:
    """The largest JSON object for which `limit_duckdb` leaves room: each thread takes twice that, for whatever it reads. None: no limit."""
    if _duckdb_bytes is None:
        return None
    threads: int = max(1, pa.cpu_count())
    return max(LEAST_JSON_BYTES, _duckdb_bytes // (8 * threads))
