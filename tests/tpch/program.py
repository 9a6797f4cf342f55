"""Run as the script of a session: all queries of TPC-H, each answer into a file.

python program.py FILES_OF_TABLES.json SCALE PLACE [NAME=VALUE ...]: the last ones are settings of smallpond_mpi.logical.lowering, to have
rows brought together in ways that so little data would not get otherwise.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyarrow.feather

import smallpond_mpi as sp
from benchmarks.tpch.queries import QUERIES, Tables
from smallpond_mpi.logical import lowering

files, scale, place, *settings = sys.argv[1:]
for setting in settings:
    name, value = setting.split("=")
    assert hasattr(lowering, name), name
    setattr(lowering, name, int(value))

session = sp.init(data_root=place, progress="none")
tables = Tables.read(session, json.loads(Path(files).read_text()), float(scale))
for name, query in QUERIES.items():
    pyarrow.feather.write_feather(query(tables).to_arrow(), Path(place, f"{name}.arrow"), compression="uncompressed")
session.shutdown()
