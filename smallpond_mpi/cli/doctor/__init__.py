"""`smallpond-mpi doctor`: what the ranks of a launch have, and what would go wrong with jobs on them.

facts     what a rank finds out about itself and the data root     IO
talk      rank 0's questions and the others' answers               messages
verdicts  ok, warn or fail, and what to do                         pure
"""
