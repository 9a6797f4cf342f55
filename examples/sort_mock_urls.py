"""Sorts URLs so that those of a host lie together, in order: one file a partition, each host in exactly one of them.

    python sort_mock_urls.py OUTPUT                      # makes its own URLs, below OUTPUT
    mpirun -n 4 python sort_mock_urls.py OUTPUT --paths 'urls/*.tsv' --npartitions 32

A file of URLs has two columns, separated by tabs: the URL, and how often it was visited.
"""

import argparse

from mock_data import write_mock_urls

import smallpond_mpi as sp

HOST = r"url, regexp_extract(url, '^[a-z]+://([^/:]+)', 1) as host, hits"


def sorted_urls(session: sp.Session, paths: list[str], npartitions: int) -> sp.DataFrame:
    """URLs with their hosts, to be computed."""
    urls = session.read_csv(paths, schema={"url": "varchar", "hits": "bigint"}, delim="\t")
    urls = urls.repartition(npartitions)  # by files: each task parses some of them
    urls = urls.map(HOST)
    return urls.repartition(npartitions, hash_by="host").partial_sort(by=["host", "url"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="directory for the sorted URLs")
    parser.add_argument("--paths", nargs="+", help="files or patterns; without it URLs are made up")
    parser.add_argument("--npartitions", type=int, default=8)
    args = parser.parse_args()

    session = sp.init()
    paths = args.paths or write_mock_urls(f"{args.output}/mock_urls")
    urls = sorted_urls(session, paths, args.npartitions)
    urls.write_parquet(f"{args.output}/sorted")
    print(f"{urls.count():,} URLs in {args.npartitions} files under {args.output}/sorted")


if __name__ == "__main__":
    main()
