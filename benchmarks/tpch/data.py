"""The tables of TPC-H as Parquet, made once by tpchgen-cli and kept."""

import subprocess
import sys
import tempfile
from pathlib import Path

TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")
PARTS = 4


def tables(scale: float, cache: Path) -> dict[str, list[str]]:
    """The Parquet files of each table at a scale factor; made if they are not in the cache."""
    place = cache / f"tpch-{scale:g}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=cache))
        generator = Path(sys.executable).parent / "tpchgen-cli"
        options = ["--scale-factor", f"{scale:g}", "--parts", str(PARTS), "--quiet", "--output-dir", str(making)]
        subprocess.run([str(generator), "parquet", *options], check=True)
        try:
            making.rename(place)
        except OSError:
            if not place.exists():  # else somebody else was faster
                raise
    return {name: sorted(map(str, (place / name).glob("*.parquet"))) for name in TABLES}
