"""Rank 0's half of the engine: decides what runs where, when again, and what counts (core), and carries it out (loop)."""
