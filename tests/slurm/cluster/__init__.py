"""A real Slurm of three nodes on one machine, for tests: see `cluster`; by hand: `python -m tests.slurm.cluster`."""
