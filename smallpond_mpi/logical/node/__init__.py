"""Nodes of a logical plan: what the user says should be computed, before it is split into tasks. Loaded when asked for."""

from smallpond_mpi.lazy import lazy_names

_NAMES = {
    "Context": "smallpond_mpi.logical.node.base",
    "Node": "smallpond_mpi.logical.node.base",
    "NodeId": "smallpond_mpi.logical.node.base",
    "DataSourceNode": "smallpond_mpi.logical.node.source_sink",
    "DataSinkNode": "smallpond_mpi.logical.node.source_sink",
    "DataSinkType": "smallpond_mpi.logical.node.source_sink",
    "RootNode": "smallpond_mpi.logical.node.source_sink",
    "PythonScriptNode": "smallpond_mpi.logical.node.compute",
    "ArrowComputeNode": "smallpond_mpi.logical.node.compute",
    "ArrowStreamNode": "smallpond_mpi.logical.node.compute",
    "ArrowBatchNode": "smallpond_mpi.logical.node.compute",
    "PandasComputeNode": "smallpond_mpi.logical.node.compute",
    "PandasBatchNode": "smallpond_mpi.logical.node.compute",
    "SqlEngineNode": "smallpond_mpi.logical.node.sql",
    "LimitNode": "smallpond_mpi.logical.node.sql",
    "UnionNode": "smallpond_mpi.logical.node.reshape",
    "ConsolidateNode": "smallpond_mpi.logical.node.reshape",
    "ProjectionNode": "smallpond_mpi.logical.node.reshape",
    "PartitionNode": "smallpond_mpi.logical.node.partition",
    "RepeatPartitionNode": "smallpond_mpi.logical.node.partition",
    "UserDefinedPartitionNode": "smallpond_mpi.logical.node.partition",
    "UserPartitionedDataSourceNode": "smallpond_mpi.logical.node.partition",
    "EvenlyDistributedPartitionNode": "smallpond_mpi.logical.node.partition",
    "LoadPartitionedDataSetNode": "smallpond_mpi.logical.node.partition",
    "DataSetPartitionNode": "smallpond_mpi.logical.node.partition",
    "HashPartitionNode": "smallpond_mpi.logical.node.hash_partition",
    "ShuffleNode": "smallpond_mpi.logical.node.hash_partition",
    "RangePartitionNode": "smallpond_mpi.logical.node.range_partition",
    "SplitPointsNode": "smallpond_mpi.logical.node.range_partition",
    "SortNode": "smallpond_mpi.logical.node.sort",
    "LogicalPlan": "smallpond_mpi.logical.node.plan",
    "LogicalPlanVisitor": "smallpond_mpi.logical.node.plan",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _NAMES)
