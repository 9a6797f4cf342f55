"""A rank's half of the engine: runs attempts in child processes, bound and limited to what they were granted."""
