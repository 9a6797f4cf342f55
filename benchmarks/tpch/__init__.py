"""TPC-H: data, the 22 queries on DataFrames (queries.py) and as SQL (sql/), and whether two answers are the same."""
