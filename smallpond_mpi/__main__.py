"""`python -m smallpond_mpi` is the command `smallpond-mpi`."""

from smallpond_mpi.cli import main

main()
