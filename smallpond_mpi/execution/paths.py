"""Where everything of a job lies. The only module that spells a path below a data root.

{data_root}/arrays/{array}/   what elements of a job array tell each other (execution/arrays.py)
{data_root}/submitted/        batch scripts of `smallpond-mpi submit`
{data_root}/{job_id}/
    output/     results that the user named            kept
    staging/    running attempts and temporary outputs  removed after success
    temp/       scratch of attempts                      removed after success
    log/        a log and its index a rank, scheduler.log    kept
    journal/    {epoch}.log, one writer each             kept until the job is done
    queue/      messages of executors that join by files  removed at the end
    owner       lease of the process that runs the job
    status      "success", or "failure" and why
    slurm       the Slurm job that ran it last, as JSON
"""

import uuid
from dataclasses import dataclass
from os.path import join


def job_uuid(job_id: str) -> uuid.UUID:
    """The UUID that a job id stands for: itself, or a name-based one (RFC 9562, version 5) of any other text."""
    try:
        return uuid.UUID(job_id)
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_OID, job_id)


@dataclass(frozen=True, slots=True)
class JobPaths:
    """The paths of one job."""

    data_root: str
    job: str

    @property
    def root(self) -> str:
        return join(self.data_root, self.job)

    @property
    def output(self) -> str:
        return join(self.root, "output")

    @property
    def staging(self) -> str:
        return join(self.root, "staging")

    @property
    def temp(self) -> str:
        return join(self.root, "temp")

    @property
    def started_tasks(self) -> str:
        return join(self.staging, "started_tasks")

    @property
    def completed_tasks(self) -> str:
        return join(self.staging, "completed_tasks")

    @property
    def messages(self) -> str:
        """Payloads, datasets and states that are too big for a message."""
        return join(self.staging, "messages")

    @property
    def queue(self) -> str:
        """Runs of schedulers whose executors join by files, each named by the nonce of its lease."""
        return join(self.root, "queue")

    def queue_of(self, nonce: str) -> str:
        return join(self.queue, nonce)

    @property
    def log(self) -> str:
        return join(self.root, "log")

    def rank_log(self, rank: int) -> str:
        return join(self.log, f"rank-{rank}.log")

    @property
    def scheduler_log(self) -> str:
        """What happened to ranks and attempts, of all epochs."""
        return join(self.log, "scheduler.log")

    @property
    def journal(self) -> str:
        return join(self.root, "journal")

    def journal_of(self, epoch: int) -> str:
        return join(self.journal, f"{epoch:06d}.log")

    @property
    def owner(self) -> str:
        return join(self.root, "owner")

    @property
    def status(self) -> str:
        return join(self.root, "status")

    @property
    def slurm(self) -> str:
        return join(self.root, "slurm")

    @property
    def runtime_ctx(self) -> str:
        return join(self.root, "runtime_ctx.pickle")

    @property
    def logical_plan(self) -> str:
        return join(self.root, "logical_plan.txt")

    @property
    def logical_plan_graph(self) -> str:
        return join(self.root, "logical_plan.dot")

    @property
    def exec_plan(self) -> str:
        return join(self.root, "exec_plan.pickle")

    @property
    def sched_state(self) -> str:
        return join(self.root, "sched_state.pickle")


@dataclass(frozen=True, slots=True)
class ArrayPaths:
    """The paths of one job array. `array` is the id that Slurm gave it."""

    data_root: str
    array: str

    @property
    def root(self) -> str:
        return join(self.data_root, "arrays", self.array)

    @property
    def array_file(self) -> str:
        return join(self.root, "array.json")

    def shares(self, digest: str) -> str:
        """Which files of one input are whose."""
        return join(self.root, f"shares-{digest}.json")

    def element(self, index: int) -> str:
        return join(self.root, "elements", f"{index}.json")

    def claim(self, digest: str) -> str:
        """Which element writes to one output path by itself."""
        return join(self.root, f"claim-{digest}.json")

    @property
    def collected(self) -> str:
        return join(self.root, "collected.json")


def submitted_script(data_root: str, job: str) -> str:
    """The batch script of a job that `smallpond-mpi submit` submitted."""
    return join(data_root, "submitted", f"{job}.sbatch")
