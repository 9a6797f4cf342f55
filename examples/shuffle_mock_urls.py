"""Puts rows into random order over all files, as training needs it: each row may end up in any file, at any place.

    python shuffle_mock_urls.py OUTPUT                   # makes its own URLs, below OUTPUT
    mpirun -n 4 python shuffle_mock_urls.py OUTPUT --paths 'urls/*.tsv' --npartitions 32 --seed 7

The same seed gives the same order, on any number of ranks and whatever fails on the way.
"""

import argparse

from mock_data import write_mock_urls

import smallpond_mpi as sp


def shuffled_urls(session: sp.Session, paths: list[str], npartitions: int) -> sp.DataFrame:
    """The rows in random order, to be computed."""
    urls = session.read_csv(paths, schema={"url": "varchar", "hits": "bigint"}, delim="\t")
    return urls.repartition(npartitions).random_shuffle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="directory for the shuffled rows")
    parser.add_argument("--paths", nargs="+", help="files or patterns; without it URLs are made up")
    parser.add_argument("--npartitions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    session = sp.init(random_seed=args.seed)
    paths = args.paths or write_mock_urls(f"{args.output}/mock_urls")
    urls = shuffled_urls(session, paths, args.npartitions)
    urls.write_parquet(f"{args.output}/shuffled")
    print(f"{urls.count():,} rows in random order in {args.npartitions} files under {args.output}/shuffled")


if __name__ == "__main__":
    main()
