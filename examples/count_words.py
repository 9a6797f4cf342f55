"""Counts the words of texts: a Python function of a row, a shuffle by word, a sum by SQL.

    python count_words.py OUTPUT                         # makes its own texts, below OUTPUT
    mpirun -n 4 python count_words.py OUTPUT --paths 'texts/*.jsonl' --npartitions 32

A file of texts has one JSON object a line, with a field "text".
"""

import argparse
import re
from collections import Counter
from typing import Any

from mock_data import write_mock_texts

import smallpond_mpi as sp

WORD = re.compile(r"[^\W\d_]+")


def words_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each different word of a text. Runs in a child of some rank; what it uses of this script goes along."""
    counts = Counter(WORD.findall((row["text"] or "").lower()))
    return [{"word": word, "count": count} for word, count in counts.items()]


def counted_words(session: sp.Session, paths: list[str], npartitions: int) -> sp.DataFrame:
    """How often each word is used, to be computed."""
    texts = session.read_json(paths, schema={"text": "varchar"}).repartition(npartitions)
    words = texts.flat_map(words_of)
    summed = session.partial_sql('select word, sum("count")::bigint as "count" from {0} group by word', words)
    same_word_together = summed.repartition(npartitions, hash_by="word")  # of sums: far fewer rows travel
    return session.partial_sql(
        'select word, sum("count")::bigint as "count" from {0} group by word', same_word_together
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="directory for the counts")
    parser.add_argument("--paths", nargs="+", help="files or patterns; without it texts are made up")
    parser.add_argument("--npartitions", type=int, default=8)
    args = parser.parse_args()

    session = sp.init()
    paths = args.paths or write_mock_texts(f"{args.output}/mock_texts")
    words = counted_words(session, paths, args.npartitions)
    words.write_parquet(f"{args.output}/words")
    for row in sorted(words.take_all(), key=lambda row: (-row["count"], row["word"]))[:10]:
        print(f"{row['count']:8,} {row['word']}")


if __name__ == "__main__":
    main()
