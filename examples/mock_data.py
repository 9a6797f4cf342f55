"""Small made-up data for the examples: the same files for the same seed.

python mock_data.py urls|texts DIRECTORY [ROWS]
"""

import csv
import json
import random
import sys
from pathlib import Path

TOP_LEVELS = ("com", "org", "net", "example")
COMMON = """
    the of and to in is was for on as with by that it from at his are be this which or an were had not first
    one river mountain city school music history water game house light company family century species island
    station
"""
WORDS = COMMON.split()


def write_mock_urls(directory: str, num_rows: int = 10_000, num_files: int = 8, seed: int = 1) -> list[str]:
    """Tab-separated files of URLs and how often each was visited; few hosts have most of them. Returns their paths."""
    rng = random.Random(seed)
    hosts = [f"host{number}.{rng.choice(TOP_LEVELS)}" for number in range(max(2, num_rows // 50))]
    paths = []
    for number, rows in enumerate(_shares(num_rows, num_files)):
        path = _file(directory, f"urls-{number:03d}.tsv")
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            for _ in range(rows):
                host = hosts[min(int(rng.expovariate(8 / len(hosts))), len(hosts) - 1)]
                writer.writerow((f"http://{host}/page/{rng.randrange(10**6)}", rng.randrange(1, 1000)))
        paths.append(str(path))
    return paths


def write_mock_texts(directory: str, num_rows: int = 2_000, num_files: int = 8, seed: int = 1) -> list[str]:
    """Newline-delimited JSON files of short texts: {"id": …, "text": …}. Returns their paths."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    paths, first = [], 0
    for number, rows in enumerate(_shares(num_rows, num_files)):
        path = _file(directory, f"texts-{number:03d}.jsonl")
        with path.open("w") as file:
            for row in range(first, first + rows):
                words = rng.choices(WORDS, weights, k=rng.randrange(3, 40))
                file.write(json.dumps({"id": row, "text": " ".join(words).capitalize() + "."}) + "\n")
        first += rows
        paths.append(str(path))
    return paths


def write_mock_records(directory: str, num_rows: int = 20_000, num_files: int = 4, seed: int = 1) -> list[str]:
    """Parquet files of random records: a key of 10 bytes and a value of 90. Returns their paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(seed)
    paths = []
    for number, rows in enumerate(_shares(num_rows, num_files)):
        path = _file(directory, f"records-{number:03d}.parquet")
        keys, values = ([rng.randbytes(width) for _ in range(rows)] for width in (10, 90))
        pq.write_table(pa.table({"key": keys, "value": values}), path)
        paths.append(str(path))
    return paths


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (number < total % parts) for number in range(parts)]


def _file(directory: str, name: str) -> Path:
    path = Path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("urls", "texts"):
        sys.exit(__doc__)
    write = write_mock_urls if sys.argv[1] == "urls" else write_mock_texts
    print("\n".join(write(sys.argv[2], *map(int, sys.argv[3:]))))
