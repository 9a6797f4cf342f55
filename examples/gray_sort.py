"""Sorts records of 100 bytes by their first ten: files in order by their names, each of them in order.

    python gray_sort.py OUTPUT                                # makes records of its own, below OUTPUT
    mpirun -n 4 python gray_sort.py OUTPUT --paths 'records/*.parquet' --npartitions 64

Records have two columns, key and value. Where one partition ends and the next begins is found in a sample of the keys.
"""

import argparse

from mock_data import write_mock_records

import smallpond_mpi as sp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="directory for the sorted records")
    parser.add_argument("--paths", nargs="+", help="files or patterns; without it records are made up")
    parser.add_argument("--npartitions", type=int, default=8)
    args = parser.parse_args()

    session = sp.init()
    records = session.read_parquet(args.paths or write_mock_records(f"{args.output}/mock_records"))
    ordered = records.sort("key", npartitions=args.npartitions)
    ordered.write_parquet(f"{args.output}/sorted")
    print(f"{ordered.count():,} records in {args.npartitions} files under {args.output}/sorted")


if __name__ == "__main__":
    main()
