"""The test cluster by hand.

python -m tests.slurm.cluster start                 in the background, until `stop`; what an earlier start has left goes first
python -m tests.slurm.cluster run sbatch -N3 ...    a command on the login node; /tmp/sp-slurm-hand/shared is seen by all nodes
python -m tests.slurm.cluster crash n3              power loss;  `revive n3` switches it on again
python -m tests.slurm.cluster stop
"""

import subprocess
import sys
from collections.abc import Sequence

from tests.slurm.cluster import remains
from tests.slurm.cluster.cluster import PARENT, Cluster, why_not


def main(args: Sequence[str]) -> int:
    """The exit code."""
    cluster = Cluster(PARENT / remains.BY_HAND)
    match args:
        case ["start"]:
            reason = why_not()
            if reason:
                print(f"no test cluster here: {reason}", file=sys.stderr)
                return 1
            cluster.start()
            print(f"{cluster.box}: {cluster.states()}; seen by all nodes: {cluster.shared}")
        case ["run", *command] if command:
            return subprocess.run(cluster.command(command)).returncode
        case ["crash", name] if name in cluster.nodes:
            cluster.crash(name)
        case ["revive", name] if name in cluster.nodes:
            cluster.start_node(name)
        case ["stop"]:
            cluster.stop()
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
