"""Slurm's job arrays: which element this process is, which others there are, and what part of the input is whose. Pure.

The share of an element follows from its place among all elements, not from its index: `--array=10-50:10%2` has the places 0 to 4.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

ARRAY_OF = "SP_ARRAY_OF"
"""Environment variable: the array that elements which run again belong to. `smallpond-mpi collect` prints the line that sets it."""
INDICES = "SP_ARRAY"
"""Environment variable: all indices, as in `sbatch --array`, for where Slurm can't be asked."""


@dataclass(frozen=True, slots=True)
class Element:
    """An element: the job id of its array (as text), and its index in it."""

    array: str
    index: int

    def __str__(self) -> str:
        return f"{self.array}_{self.index}"


def element_of(env: Mapping[str, str]) -> Element | None:
    """The element that this process belongs to; None outside an array."""
    index, own = env.get("SLURM_ARRAY_TASK_ID", ""), env.get("SLURM_ARRAY_JOB_ID", "")
    if not index.isdigit() or not own.isdigit():
        return None
    return Element(env.get(ARRAY_OF) or own, int(index))


def again(element: Element) -> str:
    """What starts an element again, so that it goes on where it was."""
    return f"sbatch --array={element.index} --export=ALL,{ARRAY_OF}={element.array} and the batch script"


def parse_indices(text: str) -> tuple[int, ...]:
    """`0-4,7,10-20:5%3` as in `sbatch --array`, in ascending order.

    Raises:
        ValueError: it is no such list.
    """
    found: set[int] = set()
    for part in text.partition("%")[0].split(","):
        matched = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if matched is None:
            raise ValueError(f"{text!r} is no list of array indices, such as 0-4,7,10-20:5")
        first, last, step = matched.groups()
        found.update(range(int(first), int(last or first) + 1, max(1, int(step or 1))))
    return tuple(sorted(found))


def show_indices(indices: Iterable[int]) -> str:
    """The shortest list of single indices and ranges: `0-4,7`."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def known_indices(env: Mapping[str, str]) -> tuple[int, ...] | None:
    """The indices of all elements, as far as an element's environment tells: those of an even range. None of a list with gaps."""
    if env.get(INDICES):
        return parse_indices(env[INDICES])
    names = ("MIN", "MAX", "STEP", "COUNT")
    texts = [env.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
    if not all(map(str.isdigit, texts)):
        return None
    first, last, step, count = map(int, texts)
    indices = tuple(range(first, last + 1, max(1, step)))
    return indices if len(indices) == count and indices[-1] == last else None


def indices_in(shown: str) -> tuple[int, ...]:
    """The indices in what `scontrol show job` says of an array: a record for each element that was started, one for all that wait."""
    found: set[int] = set()
    for text in re.findall(r"\bArrayTaskId=([\d,:%-]+)", shown):
        found.update(parse_indices(text))
    return tuple(sorted(found))


def script_in(shown: str) -> tuple[str, str]:
    """(batch script with its arguments, directory) in what `scontrol show job` says; empty if it doesn't say it.

    Both may hold spaces: what counts is what stands between them and the next field, which in newer versions of Slurm is the whole line that submitted the job.
    """
    found = re.search(r"\bCommand=(.*?)(?: SubmitLine=.*?)? WorkDir=(.*?) Std(?:Err|In|Out)=", shown)
    return (found[1], found[2]) if found is not None else ("", "")


def shares(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Cut items into `count` contiguous parts of about equal sums: [begin, end) of each. An item belongs where its middle lies.

    No part is larger than an even one by more than the largest item.
    """
    # what is empty has to be somewhere too, and parts of nothing but empty items are to be even
    weights = [max(1, size) for size in sizes]
    total = max(1, sum(weights))
    ends = list(accumulate(weights))
    owners = [((2 * end - weight) * count) // (2 * total) for end, weight in zip(ends, weights, strict=True)]
    bounds = [0] * (count + 1)
    for owner in owners:
        bounds[owner + 1] += 1
    bounds = list(accumulate(bounds))
    return list(pairwise(bounds))
