"""Where to cut, so that partitions are of about the same size: split points from a sample.

    all inputs --some row groups, the columns of the key--> sample --> distinct keys, how often each --choose_points--> points

A sample that holds a few hundred rows for each partition puts partitions within some ten percent of each other. Rows of a row group are often
alike (data that came in by time), so that it is drawn from many row groups, spread evenly; only these are read.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.task.engine import ExecSqlQueryMixin
from smallpond_mpi.execution.task.key_compare import cast_to, compared_as
from smallpond_mpi.execution.task.output import copy_to_parquet, is_unknown, nothing_of, written_dataset
from smallpond_mpi.execution.task.partition import Inputs
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.task.sort_key import InputKeys, SortKey
from smallpond_mpi.io.arrow import read_range, schema_of
from smallpond_mpi.io.arrow_types import concat, durations_as_numbers
from smallpond_mpi.logical.dataset import DataSet, ParquetDataSet
from smallpond_mpi.logical.dataset.sampling import row_groups_at, sampled_ranges

if TYPE_CHECKING:
    from smallpond_mpi.io.parquet import RowRange

ROWS_A_PARTITION = 200
"""Sampled rows for each partition: its size is then within 7% (one standard deviation) of what was meant."""
GROUPS_A_PARTITION = 2
MIN_GROUPS, MAX_GROUPS = 16, 256
SAMPLE, DISTINCT, CHOSEN = "__sample", "__distinct_keys", "__chosen_keys"


class SplitPointsTask(ExecSqlQueryMixin):
    """Its output is a table of at most `npartitions` - 1 split points, ascending, a column a key (p0, p1, ...).

    Args:
        sort_keys: what is compared.
        min_rows: of fewer rows no partition should be, so that less data gets fewer points.
    """

    memory_overcommit_ratio = 0.5

    def __init__(
        self,
        ctx: RuntimeContext,
        input_deps: Inputs,
        partition_infos: Iterable[PartitionInfo],
        npartitions: int,
        sort_keys: Sequence[SortKey],
        min_rows: int = 1,
        cpu_limit: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(ctx, input_deps, partition_infos, cpu_limit=cpu_limit or 1, memory_limit=memory_limit)
        self.npartitions = npartitions
        self.sort_keys = list(sort_keys)
        self.min_rows = min_rows

    def cleanup(self) -> None:
        self.input_view_index = 0
        super().cleanup()

    def run(self) -> bool:
        self.add_elapsed_time()
        dataset = DataSet.merge(list(self.input_datasets))
        if is_unknown(dataset):
            self.dataset = nothing_of(self, [dataset])
            return True
        with self.connection() as conn:
            num_rows = self._sample(conn, dataset)
            self.add_elapsed_time("input load time (secs)")
            counts = conn.sql(f"SELECT num_rows FROM {DISTINCT} ORDER BY position").fetchnumpy()["num_rows"].tolist()
            points = choose_points(counts, min(self.npartitions, max(1, num_rows // self.min_rows)))
            conn.register(CHOSEN, pa.table({"position": pa.array(points, pa.int64())}))
            query = f"SELECT * EXCLUDE (num_rows, position) FROM {DISTINCT} SEMI JOIN {CHOSEN} USING (position) ORDER BY position"
            files = copy_to_parquet(self, conn, query, self.output_filename)
        self.perf_metrics["num output rows"] = len(points)
        self.add_elapsed_time("compute time (secs)")
        self.dataset = written_dataset(self, files)
        return True

    def _sample(self, conn: duckdb.DuckDBPyConnection, dataset: DataSet) -> int:
        """Make a table of the distinct keys of a sample, in order, with how often each is in it. Returns how many rows there are, at least."""
        size = self.npartitions * ROWS_A_PARTITION
        if isinstance(dataset, ParquetDataSet) and not (dataset.union_by_name or dataset.generated_columns):
            ranges = sampled_ranges(dataset)
            num_rows = sum(item.num_rows for item in ranges)
            rows = self._rows_of_groups(dataset, ranges, size if num_rows > size else None)
            conn.register(SAMPLE, rows)
            self._count_keys(conn, f"FROM {SAMPLE}", rows.column_names)
            return num_rows
        # What has no row groups, or columns that not every file has, is read to the end; no more than the sample is held.
        (view,) = self.create_input_views(conn, [dataset])
        columns = conn.sql(f"FROM {view}").columns
        seed = self.rand_seed_uint32
        num_rows = self._count_keys(
            conn, f"FROM {view} USING SAMPLE reservoir({size} ROWS) REPEATABLE ({seed})", columns
        )
        return num_rows if num_rows < size else max(num_rows, self.min_rows * self.npartitions)

    def _rows_of_groups(self, dataset: ParquetDataSet, ranges: "list[RowRange]", size: int | None) -> pa.Table:
        """Rows drawn at random from some row groups, `size` in all, or all rows; with the columns that the key needs."""
        columns = dataset.columns or schema_of(ranges[0]).names
        keys = InputKeys.among(self.sort_keys, columns)
        names = list(dict.fromkeys(keys.columns)) if keys.are_columns else dataset.columns
        if size is None:
            drawn = [(item.path, read_range(item, names)) for item in ranges]
        else:
            count = min(MAX_GROUPS, max(MIN_GROUPS, self.npartitions * GROUPS_A_PARTITION))
            drawn = [
                (group.path, self._drawn(read_range(group, names), times * size // count))
                for group, times in row_groups_at(ranges, count)
            ]
        return durations_as_numbers(concat(drawn))

    def _drawn(self, table: pa.Table, count: int) -> pa.Table:
        if table.num_rows <= count:
            return table
        return table.take(pa.array(self.numpy_random_gen.choice(table.num_rows, count, replace=False, shuffle=False)))

    def _count_keys(self, conn: duckdb.DuckDBPyConnection, source: str, columns: Sequence[str]) -> int:
        """Make the table; returns how many rows `source` has."""
        keys = InputKeys.among(self.sort_keys, columns)
        values = keys.values(keys.columns)
        values = cast_to(compared_as(conn, values, columns, conn.sql(source).types), values)
        names = [f"p{number}" for number in range(len(values))]
        selected = ", ".join(f"{value} AS {name}" for value, name in zip(values, names, strict=True))
        query = (
            f"CREATE TEMP TABLE {DISTINCT} AS SELECT *, row_number() OVER (ORDER BY {keys.comparable(names)}) - 1 AS position "
            f"FROM (SELECT {', '.join(names)}, count(*) AS num_rows FROM (SELECT {selected} {source}) GROUP BY ALL)"
        )
        self.exec_query(conn, query)
        ((num_rows,),) = conn.sql(f"SELECT coalesce(sum(num_rows), 0)::BIGINT FROM {DISTINCT}").fetchall()
        return int(num_rows)


def choose_points(counts: Sequence[int], npartitions: int) -> list[int]:
    """At which of the distinct keys, given how often each was drawn, a partition begins: at most `npartitions` - 1 of them.

    What is left is dealt out evenly among the partitions that are left, so that a key that alone is more than its share costs one partition,
    and the others are as large as if it were not there.
    """
    points: list[int] = []
    left, held = sum(counts), 0
    for position, count in enumerate(counts):
        share = left / (npartitions - len(points))
        # Cut where it is nearer to the share: before this key, or after it.
        if held and held + count / 2 >= share and len(points) < npartitions - 1:
            points.append(position)
            left, held = left - held, 0
        held += count
    return points
