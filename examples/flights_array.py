"""examples/flights.py as a Slurm job array: each element takes its share of the files, and a last job sums up what all have found.

    sbatch --array=0-4 array.sbatch flights_array.py DATA OUTPUT      (slurm/array.sbatch; prints the array's id)
    smallpond-mpi collect ARRAYJOB
    python flights_array.py DATA OUTPUT --sum-up

`collect` makes OUTPUT/flights, each flight with its weather, its plane and its route, and OUTPUT/partial_sums; the last line OUTPUT/airlines, one row an airline.
Outside an array the first line, by `python flights_array.py DATA OUTPUT`, takes all files.
"""

import os
import sys

from flights import SUM_UP_PARTITION, by_airline, with_weather_plane_and_route

import smallpond_mpi as sp


def element(data: str, output: str) -> None:
    """What one element does."""
    session = sp.init()
    files = session.shard(f"{data}/flights/*.parquet")
    flights = with_weather_plane_and_route(session, session.read_parquet(files), data, npartitions=8)
    partial_sums = session.partial_sql(SUM_UP_PARTITION, flights)
    session.wait(
        flights.write_parquet_lazy(f"{output}/flights"), partial_sums.write_parquet_lazy(f"{output}/partial_sums")
    )


def sum_up(data: str, output: str) -> None:
    """What is left when all elements have succeeded, and were collected."""
    session = sp.init()
    partial_sums = session.read_parquet(f"{output}/partial_sums/*.parquet")
    by_airline(session, partial_sums, data).write_parquet(f"{output}/airlines")


if __name__ == "__main__":
    arguments = [os.path.abspath(argument) for argument in sys.argv[1:3]]
    if len(arguments) != 2 or sys.argv[3:] not in ([], ["--sum-up"]):
        sys.exit(__doc__)
    (sum_up if sys.argv[3:] else element)(*arguments)
