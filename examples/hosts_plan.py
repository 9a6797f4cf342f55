"""A plan of nodes run by the Driver: which hosts were visited most, of URLs in tab-separated files.

    python mock_data.py urls urls                                        # makes some
    python hosts_plan.py -i urls/*.tsv --output_path $PWD/hosts          # the cores of this machine
    mpirun -n 4 python hosts_plan.py mpi -i urls/*.tsv --output_path $PWD/hosts

Where MPI can't be started, a scheduler and executors meet through the data root, which all of them must see:

    python hosts_plan.py scheduler --job_id visits --num_executors 2 -i urls/*.tsv --output_path $PWD/hosts &
    python hosts_plan.py executor --job_id visits -i urls/*.tsv &        # on any node, as many as wanted, at any time
    python hosts_plan.py executor --job_id visits -i urls/*.tsv

`python hosts_plan.py --help` lists the options of the job beside those of the script.
"""

import os

from smallpond_mpi.execution.driver import Driver
from smallpond_mpi.logical.dataset import CsvDataSet
from smallpond_mpi.logical.node import (
    Context,
    DataSetPartitionNode,
    DataSourceNode,
    HashPartitionNode,
    LimitNode,
    LogicalPlan,
    SqlEngineNode,
)

PARSE = r"select regexp_extract(url, '^[a-z]+://([^/:]+)', 1) as host, hits from {0}"
SUM_UP = "select host, count(*) as urls, sum(hits)::bigint as hits from {0} group by host"
BUSIEST = "select * from {0} order by hits desc, host"


def hosts_plan(input_paths: list[str], npartitions: int, num_hosts: int) -> LogicalPlan:
    """The busiest hosts, with their URLs and visits."""
    ctx = Context()
    urls = CsvDataSet(list(map(os.path.abspath, input_paths)), {"url": "varchar", "hits": "bigint"}, delim="\t")
    source = DataSourceNode(ctx, urls)
    files = DataSetPartitionNode(ctx, (source,), npartitions=npartitions)
    visits = SqlEngineNode(ctx, (files,), PARSE)
    by_host = HashPartitionNode(ctx, (visits,), npartitions=npartitions, hash_columns=["host"])
    hosts = SqlEngineNode(ctx, (by_host,), SUM_UP, output_name="hosts")  # a named result below the job's directory
    everything = DataSetPartitionNode(ctx, (hosts,), npartitions=1)
    busiest = SqlEngineNode(ctx, (everything,), BUSIEST)
    return LogicalPlan(ctx, LimitNode(ctx, busiest, num_hosts))


def main() -> None:
    driver = Driver()
    driver.add_argument("-i", "--input_paths", nargs="+", required=True, help="files of URLs")
    driver.add_argument("-n", "--npartitions", type=int, default=8)
    driver.add_argument("--num_hosts", type=int, default=10)
    plan = hosts_plan(**driver.get_arguments())
    driver.run(plan)  # ends the process: with 0 after success


if __name__ == "__main__":
    main()
