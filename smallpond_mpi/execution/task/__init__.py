"""What a task is and its kinds, one a file. Names are loaded when asked for: planning needs no DuckDB."""

from smallpond_mpi.lazy import lazy_names

_NAMES = {
    "JobId": "smallpond_mpi.execution.context",
    "RuntimeContext": "smallpond_mpi.execution.context",
    "TaskId": "smallpond_mpi.execution.model",
    "TaskRuntimeId": "smallpond_mpi.execution.model",
    "WorkStatus": "smallpond_mpi.execution.model",
    "PerfStats": "smallpond_mpi.execution.task.metrics",
    "PartitionInfo": "smallpond_mpi.execution.task.partition_info",
    "Task": "smallpond_mpi.execution.task.base",
    "ExecSqlQueryMixin": "smallpond_mpi.execution.task.engine",
    "DataSourceTask": "smallpond_mpi.execution.task.source",
    "MergeDataSetsTask": "smallpond_mpi.execution.task.views",
    "SplitDataSetTask": "smallpond_mpi.execution.task.views",
    "ProjectionTask": "smallpond_mpi.execution.task.views",
    "PartitionProducerTask": "smallpond_mpi.execution.task.partition",
    "EvenlyDistributedPartitionProducerTask": "smallpond_mpi.execution.task.partition",
    "PartitionConsumerTask": "smallpond_mpi.execution.task.partition",
    "HashPartitionTask": "smallpond_mpi.execution.task.hash_partition",
    "HashPartitionDuckDbTask": "smallpond_mpi.execution.task.hash_duckdb",
    "HashPartitionArrowTask": "smallpond_mpi.execution.task.hash_arrow",
    "SqlEngineTask": "smallpond_mpi.execution.task.sql",
    "ArrowComputeTask": "smallpond_mpi.execution.task.compute",
    "ArrowStreamTask": "smallpond_mpi.execution.task.stream",
    "ArrowBatchTask": "smallpond_mpi.execution.task.stream",
    "StreamOutput": "smallpond_mpi.execution.task.stream",
    "PythonScriptTask": "smallpond_mpi.execution.task.script",
    "DataSinkTask": "smallpond_mpi.execution.task.sink",
    "DataSinkType": "smallpond_mpi.execution.task.sink",
    "RootTask": "smallpond_mpi.execution.task.plan",
    "ExecutionPlan": "smallpond_mpi.execution.task.plan",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _NAMES)
