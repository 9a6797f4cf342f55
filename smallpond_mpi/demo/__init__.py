"""`smallpond-mpi demo`: a pipeline over real data, checked against DuckDB. `flights` is examples/flights.py itself."""
