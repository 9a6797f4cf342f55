"""Embeds texts, with a share of a GPU for each task.

    python embeddings.py OUTPUT                                  # on the CPUs: no GPU is asked for
    mpirun -n 4 python embeddings.py OUTPUT --gpu-share 0.25     # four tasks at a time on each GPU of each rank

With --gpu-share each task is given that part of one GPU, in a process of its own where CUDA_VISIBLE_DEVICES names it (the model
is on "cuda:0" for it, whichever that is), and the shares on one GPU never add up to more than 1. Where no rank has a GPU,
--gpu-share ends the job before anything runs, with an error that says so; without it the tasks run on CPUs and CUDA_VISIBLE_DEVICES hides any GPU.

The model is a toy of NumPy: the sum of one random vector a word. Put a real one into `load_model`.
"""

import argparse
import os
import re
import zlib
from functools import cache
from typing import TYPE_CHECKING

from mock_data import write_mock_texts

import smallpond_mpi as sp

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DIMENSIONS = 16
BUCKETS = 4096
WORD = re.compile(r"\w+")


@cache
def load_model() -> "np.ndarray":
    """One row a bucket of words, loaded once a process: this is where `model.to("cuda:0")` would stand."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((BUCKETS, DIMENSIONS), dtype=np.float32)


def embed(texts: "pa.Table") -> "pa.Table":
    """Adds the column `embedding`, of length 1 each (all zeros for a text without words), and `device`, where it was computed."""
    import numpy as np
    import pyarrow as pa

    model = load_model()
    embedded = np.zeros((texts.num_rows, DIMENSIONS), dtype=np.float32)
    for row, text in enumerate(texts["text"].to_pylist()):
        buckets = [zlib.crc32(word.encode()) % BUCKETS for word in WORD.findall((text or "").lower())]
        if buckets:
            summed = model[buckets].sum(axis=0)
            embedded[row] = summed / np.linalg.norm(summed)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    device = "cpu" if gpu in ("", "-1") else f"gpu {gpu}"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedded.ravel()), DIMENSIONS)
    return texts.append_column("embedding", vectors).append_column("device", pa.array([device] * texts.num_rows))


def embedded_texts(session: sp.Session, paths: list[str], npartitions: int, gpu_share: float) -> sp.DataFrame:
    """Texts with their embeddings, to be computed."""
    texts = session.read_json(paths, schema={"id": "bigint", "text": "varchar"})
    return texts.repartition(npartitions).map_batches(embed, batch_size=256, gpu_limit=gpu_share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="directory for the embeddings")
    parser.add_argument("--paths", nargs="+", help="JSON lines with id and text; without it texts are made up")
    parser.add_argument("--npartitions", type=int, default=8)
    parser.add_argument("--gpu-share", type=float, default=0, help="part of a GPU for each task, 0 for none")
    args = parser.parse_args()

    session = sp.init()
    paths = args.paths or write_mock_texts(f"{args.output}/mock_texts")
    texts = embedded_texts(session, paths, args.npartitions, args.gpu_share)
    texts.write_parquet(f"{args.output}/embeddings")
    devices = sorted({row["device"] for row in texts.map("device").take_all()})
    print(f"{texts.count():,} texts embedded on {', '.join(devices)}")


if __name__ == "__main__":
    main()
