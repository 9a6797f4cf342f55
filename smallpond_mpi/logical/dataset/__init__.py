"""Datasets: sets of files, or data in memory, that can be cut, merged, read and queried. Names are loaded when asked for."""

from typing import TYPE_CHECKING

from smallpond_mpi.lazy import lazy_names

if TYPE_CHECKING:
    from smallpond_mpi.io.parquet import FileFacts as FileFacts
    from smallpond_mpi.io.resolve import has_magic as has_magic
    from smallpond_mpi.logical.dataset.base import DataSet as DataSet
    from smallpond_mpi.logical.dataset.base import FileSet as FileSet
    from smallpond_mpi.logical.dataset.memory import ArrowTableDataSet as ArrowTableDataSet
    from smallpond_mpi.logical.dataset.memory import PandasDataSet as PandasDataSet
    from smallpond_mpi.logical.dataset.parquet import ParquetDataSet as ParquetDataSet
    from smallpond_mpi.logical.dataset.partitioned import PackedPartitions as PackedPartitions
    from smallpond_mpi.logical.dataset.partitioned import PartitionedDataSet as PartitionedDataSet
    from smallpond_mpi.logical.dataset.sql import SqlQueryDataSet as SqlQueryDataSet
    from smallpond_mpi.logical.dataset.text import CsvDataSet as CsvDataSet
    from smallpond_mpi.logical.dataset.text import JsonDataSet as JsonDataSet

NAMES = {
    "has_magic": "smallpond_mpi.io.resolve",
    "FileFacts": "smallpond_mpi.io.parquet",
    "DataSet": "smallpond_mpi.logical.dataset.base",
    "FileSet": "smallpond_mpi.logical.dataset.base",
    "PartitionedDataSet": "smallpond_mpi.logical.dataset.partitioned",
    "PackedPartitions": "smallpond_mpi.logical.dataset.partitioned",
    "CsvDataSet": "smallpond_mpi.logical.dataset.text",
    "JsonDataSet": "smallpond_mpi.logical.dataset.text",
    "ParquetDataSet": "smallpond_mpi.logical.dataset.parquet",
    "SqlQueryDataSet": "smallpond_mpi.logical.dataset.sql",
    "ArrowTableDataSet": "smallpond_mpi.logical.dataset.memory",
    "PandasDataSet": "smallpond_mpi.logical.dataset.memory",
}
"""Public name -> the module it lives in."""

__getattr__, __dir__, __all__ = lazy_names(__name__, NAMES)
