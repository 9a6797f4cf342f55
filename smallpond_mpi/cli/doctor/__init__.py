"""`smallpond-mpi doctor`: what the ranks of a launch have, and what would go wrong with jobs on them.

examine   rank 0, from its arrival to its exit code
facts     what a rank finds out about itself                  IO
files     what it finds out about the data root               IO
duty      it runs a task, and rests                           IO
trial     that task, packed by rank 0 for each rank
talk      rank 0's questions and the others' answers          messages
verdicts  ok, warn or fail, and what to do                    pure
report    the table and the lines, or JSON                    pure
"""
