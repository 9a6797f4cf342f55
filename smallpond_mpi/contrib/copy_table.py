"""Nodes that write their one input again, unchanged: as Parquet of other settings, or under a name of its own."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from smallpond_mpi.logical.node.compute import ArrowComputeNode, ArrowStreamNode

if TYPE_CHECKING:
    import pyarrow as arrow

    from smallpond_mpi.execution.context import RuntimeContext
    from smallpond_mpi.execution.task.stream import StreamOutput


class CopyArrowTable(ArrowComputeNode):
    """Each partition of the input, read whole and written again."""

    def process(self, runtime_ctx: "RuntimeContext", input_tables: "list[arrow.Table]") -> "arrow.Table":
        """The first input as it is."""
        return input_tables[0]


class StreamCopy(ArrowStreamNode):
    """Each partition of the input, read and written batch by batch, with checkpoints."""

    def process(
        self, runtime_ctx: "RuntimeContext", input_readers: "list[arrow.RecordBatchReader]"
    ) -> "Iterable[StreamOutput]":
        """The batches of the first input as they are."""
        import pyarrow as arrow

        from smallpond_mpi.execution.task.stream import StreamOutput

        (reader, *_) = input_readers
        is_empty = True
        for index, batch in enumerate(reader):
            is_empty = False
            yield StreamOutput(
                arrow.Table.from_batches([batch]), batch_indices=[index, *[-1] * (len(input_readers) - 1)]
            )
        if is_empty:
            yield StreamOutput(reader.schema.empty_table())
