"""The demo's answer once more, by one DuckDB query over the package's CSV files, and how the two compare."""

from typing import Any

import duckdb
import pyarrow as pa

QUERY = """
with weather as (
    select origin, time_hour, precip > 0 or visib < 3 or coalesce(wind_speed > 25, false) as bad_weather
    from read_csv($weather, nullstr='NA', sample_size=-1)
), flights as (
    select *, f.dep_time is null as cancelled, coalesce(w.bad_weather, false) as bad_weather, 2013 - p.year as plane_age,
           2 * 3958.8 * asin(sqrt(
               sin(radians(there.lat - here.lat) / 2) ** 2
               + cos(radians(here.lat)) * cos(radians(there.lat)) * sin(radians(there.lon - here.lon) / 2) ** 2
           )) as miles
    from read_csv($flights, nullstr='NA', sample_size=-1) as f
    left join weather as w on f.origin = w.origin and f.time_hour = w.time_hour
    left join read_csv($planes, nullstr='NA', sample_size=-1) as p on f.tailnum = p.tailnum
    left join read_csv($airports, sample_size=-1) as here on f.origin = here.faa
    left join read_csv($airports, sample_size=-1) as there on f.dest = there.faa
    where f.origin <> f.dest
)
select any_value(a.name) as airline,
       count(*) as flights,
       count(*) filter (cancelled) as cancelled,
       count(*) filter (arr_delay > 15) as late,
       avg(dep_delay) as mean_departure_delay,
       avg(arr_delay) as mean_arrival_delay,
       count(dep_delay) filter (bad_weather) as departed_in_bad_weather,
       avg(dep_delay) filter (bad_weather) as mean_departure_delay_in_bad_weather,
       avg(plane_age) as mean_plane_age,
       coalesce(sum(seats) filter (not cancelled), 0)::bigint as seats,
       sum(miles) filter (air_time is not null) as miles,
       sum(miles) filter (air_time is not null) / (sum(air_time) filter (miles is not null) / 60) as mean_mph
from flights join read_csv($airlines, sample_size=-1) as a using (carrier)
group by carrier
"""
TOLERANCE = 1e-9
"""Relative, for floating-point numbers alone: they are added in another order."""


def expected(csv_files: dict[str, str]) -> list[dict[str, Any]]:
    """The rows that the demo must come to."""
    with duckdb.connect() as connection:
        table: pa.Table = connection.sql(QUERY, params=csv_files).to_arrow_table()
    return in_order(table)


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    """Rows, the airline with most flights first."""
    return sorted(table.to_pylist(), key=lambda row: (-row["flights"], row["airline"]))


def differences(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[str]:
    """What is different, a line each: rows, columns, types or values."""
    if [row["airline"] for row in found] != [row["airline"] for row in wanted]:
        return [f"airlines: {[row['airline'] for row in found]}, DuckDB has {[row['airline'] for row in wanted]}"]
    lines = []
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.keys() != theirs.keys():
            return [f"columns: {list(ours)}, DuckDB has {list(theirs)}"]
        lines += [
            f"{ours['airline']}: {name} is {value}, DuckDB has {theirs[name]}"
            for name, value in ours.items()
            if not _same(value, theirs[name])
        ]
    return lines


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= TOLERANCE * max(abs(ours), abs(theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)
