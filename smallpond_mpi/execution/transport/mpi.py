"""Frames over MPI: the only module that imports mpi4py.

One thread, nonblocking point to point on a communicator of our own, no collective after `start`. A frame that is not too long is one message; a longer
one is its length, then chunks, so that neither a library's 2 GiB limit nor its buffers matter. Messages of one pair don't overtake
each other: that is all the framing there is.

Nothing here blocks: what can't leave yet waits in a queue, what is still arriving is tested at the next poll. With ULFM (Open MPI's
`mpirun --with-ft ulfm`) the death of a peer is told once as PeerGone; without it the launcher ends the job.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

from mpi4py import MPI  # noqa: E402 importing it initialises MPI unless told not to before

from smallpond_mpi.common import MB, SmallpondError  # noqa: E402
from smallpond_mpi.execution.model import SCHEDULER_RANK, Capacity, Rank  # noqa: E402
from smallpond_mpi.execution.transport import PeerGone, Received  # noqa: E402
from smallpond_mpi.platform import discover  # noqa: E402
from smallpond_mpi.platform.binding import (  # noqa: E402 as those above: mpi4py is told first
    SRUN,
    LocalRank,
    has_long_addresses,
    launched_rank,
    launched_size,
    launcher_of,
)
from smallpond_mpi.platform.process import ancestor_named  # noqa: E402

CHUNK_BYTES = 64 * MB
IN_FLIGHT = 4
"""Messages to one peer that MPI is given at a time: with chunks, what it may buffer."""
FRAME, LENGTH, CHUNK, GOODBYE = 1, 2, 3, 4
"""Tags. LENGTH announces a frame that comes in chunks; GOODBYE is the last that comes."""
MAX_MESSAGES_A_POLL = 256
FAILURE_CHECK_SECS = 0.05
CLOSE_POLL_SECS = 0.0005
ABORT_SECS = 10.0
LEAVE_SECS = 10.0
REST_SECS = 0.01
LAST_WORD_SECS = 2.0
MAX_NAMED = 20
ULFM_LAUNCHERS = {"prterun", "prted", "mpirun", "mpiexec"}
PMIX_BOOL = 1
PMIX_INFO_BYTES = 4096
"""More than a pmix_info_t (some 550) of any version."""
DEATHS = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED} - {MPI.ERR_UNKNOWN}
"""Error classes that mean a peer is dead. For an MPI without ULFM mpi4py gives them all the number of the unknown error."""


@dataclass(frozen=True, slots=True)
class World:
    """Where this process stands among those that the launcher started, and what its executor may use."""

    rank: Rank
    size: int
    host: str
    local_ranks: tuple[LocalRank, ...]
    capacity: Capacity


class _Outgoing:
    """What is to be sent to one peer, in order."""

    __slots__ = ("in_flight", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[bytes | memoryview, int]] = deque()
        self.in_flight: deque[tuple[MPI.Request, bytes | memoryview]] = deque()  # with the buffer that MPI reads


class _Incoming:
    """What one peer is sending. `requests` are in the order of its messages; each fills a frame of its own or a part of a long one."""

    __slots__ = ("frame", "posted", "requests")

    def __init__(self) -> None:
        self.requests: deque[tuple[MPI.Request, bytearray, bool]] = (
            deque()
        )  # (request, frame, whether it completes the frame)
        self.frame = bytearray()
        self.posted = 0


class MpiTransport:
    """A rank's way to every other."""

    def __init__(
        self, comm: MPI.Intracomm, *, chunk_bytes: int = CHUNK_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._comm = comm
        self._chunk_bytes = chunk_bytes
        self._clock = clock
        self._outgoing: dict[int, _Outgoing] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._status = MPI.Status()
        self._gone: set[int] = set()
        self._farewells: set[int] = set()
        self._acknowledged = 0
        self._forsaken: list[_Outgoing | _Incoming] = []  # MPI may still hold the buffers of requests to the dead
        self._news: list[Received | PeerGone] = []
        self._watches_failures = _can_tell_failures(comm)
        self._next_failure_check = clock() + FAILURE_CHECK_SECS
        self._closed = False

    def send(self, dest: Rank, frame: bytes) -> None:
        """Queue a frame; a frame for a dead peer is dropped."""
        if dest in self._gone or self._closed:
            return
        outgoing = self._outgoing.get(dest)
        if outgoing is None:
            outgoing = self._outgoing[dest] = _Outgoing()
        if len(frame) <= self._chunk_bytes:
            outgoing.waiting.append((frame, FRAME))
        else:
            outgoing.waiting.append((len(frame).to_bytes(8, "little"), LENGTH))
            view = memoryview(frame)
            for at in range(0, len(frame), self._chunk_bytes):
                outgoing.waiting.append((view[at : at + self._chunk_bytes], CHUNK))
        self._push(dest, outgoing)

    def _push(self, dest: int, outgoing: _Outgoing) -> None:
        """Hand to MPI what it takes now."""
        in_flight = outgoing.in_flight
        try:
            while in_flight and in_flight[0][0].Test():
                in_flight.popleft()
            while outgoing.waiting and len(in_flight) < IN_FLIGHT:
                buffer, tag = outgoing.waiting.popleft()
                request = self._comm.Isend([buffer, MPI.BYTE], dest, tag)
                if in_flight or not request.Test():
                    in_flight.append((request, buffer))
        except MPI.Exception as error:
            self._lose(dest, error)
            return
        if not in_flight and not outgoing.waiting:
            del self._outgoing[dest]

    def poll(self) -> Sequence[Received | PeerGone]:
        """Everything that has come since the last poll; also moves what is still to be sent. Never blocks."""
        for dest, outgoing in list(self._outgoing.items()):
            self._push(dest, outgoing)
        self._take_messages()
        if self._incoming:
            for source, incoming in list(self._incoming.items()):
                self._complete(source, incoming)
        if self._watches_failures and self._clock() >= self._next_failure_check:
            self._check_failures()
        news, self._news = self._news, []
        return news

    def _take_messages(self) -> None:
        status = self._status
        for _ in range(MAX_MESSAGES_A_POLL):
            try:
                message = self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            except MPI.Exception as error:
                if error.Get_error_class() not in DEATHS:
                    raise
                self._check_failures()  # a probe of any source refuses until all deaths are acknowledged
                return
            if message is None:
                return
            source, tag, count = status.Get_source(), status.Get_tag(), status.Get_count(MPI.BYTE)
            try:
                self._receive(source, tag, count, message)
            except MPI.Exception as error:
                self._lose(source, error)

    def _receive(self, source: int, tag: int, count: int, message: MPI.Message) -> None:
        incoming = self._incoming.get(source)
        if tag == FRAME:
            frame = bytearray(count)
            request = message.Irecv([frame, MPI.BYTE])
            if (incoming is None or not incoming.requests) and request.Test():
                self._news.append(Received(Rank(source), frame))
                return
            completes = True
        elif tag == GOODBYE:
            message.Recv([bytearray(), MPI.BYTE])
            self._farewells.add(source)
            return
        elif tag == LENGTH:
            length = bytearray(8)
            message.Recv([length, MPI.BYTE])  # so small that it came with its envelope
            incoming = self._incoming.setdefault(source, _Incoming())
            incoming.frame = bytearray(int.from_bytes(length, "little"))
            incoming.posted = 0
            return
        else:
            assert incoming is not None, "a chunk without the length before it"
            frame = incoming.frame
            part = memoryview(frame)[incoming.posted : incoming.posted + count]
            request = message.Irecv([part, MPI.BYTE])
            incoming.posted += count
            completes = incoming.posted == len(frame)
        incoming = incoming or self._incoming.setdefault(source, _Incoming())
        incoming.requests.append((request, frame, completes))

    def _complete(self, source: int, incoming: _Incoming) -> None:
        """Take the frames whose last byte has come."""
        requests = incoming.requests
        try:
            while requests and requests[0][0].Test():
                _, frame, completes = requests.popleft()
                if completes:
                    self._news.append(Received(Rank(source), frame))
        except MPI.Exception as error:
            self._lose(source, error)
            return
        if not requests and incoming.posted == len(incoming.frame):
            del self._incoming[source]

    def _check_failures(self) -> None:
        """Ask ULFM who has died."""
        self._next_failure_check = self._clock() + FAILURE_CHECK_SECS
        failed = self._comm.Get_failed()
        count = failed.Get_size()
        if count > self._acknowledged:
            self._acknowledged = count
            self._comm.Ack_failed(count)
            group = self._comm.Get_group()
            for rank in failed.Translate_ranks(list(range(count)), group):
                self._lose(rank, None)
            group.Free()
        failed.Free()

    def _lose(self, peer: int, error: MPI.Exception | None) -> None:
        """A peer is dead: told once. Raises what is no sign of a death."""
        if error is not None and error.Get_error_class() not in DEATHS:
            raise error
        if peer in self._gone:
            return
        self._gone.add(peer)
        for table in (self._outgoing, self._incoming):
            left = table.pop(peer, None)
            if left is not None:
                self._forsaken.append(left)
        self._news.append(PeerGone(Rank(peer), "its process has died" if error is None else str(error)))

    def close(self, deadline_secs: float) -> None:
        """Wait up to `deadline_secs` for queued frames to leave. What comes meanwhile is dropped."""
        deadline = self._clock() + deadline_secs
        self._closed = True
        while self._outgoing and self._clock() < deadline:
            self.poll()
            time.sleep(CLOSE_POLL_SECS)

    def finalize(self, watchdog_secs: float, exit_code_if_stuck: int = 0) -> None:
        """MPI_Finalize, which waits for all ranks. Rank 0 waits `watchdog_secs` for the others and then has them ended, with `exit_code_if_stuck`; they
        wait for rank 0 as long as it lives.

        What was computed is safe by then. mpi4py holds the interpreter's lock in Finalize, so that no thread could watch over it: the waiting is done
        before, by polling, and should Finalize itself hang the kernel's alarm ends the process.
        """
        deadline = self._clock() + watchdog_secs
        if not self._all_leave(deadline):
            if self._comm.Get_rank() == SCHEDULER_RANK:
                self._end_without_the_others(watchdog_secs, exit_code_if_stuck)
            os._exit(exit_code_if_stuck)
        self._closed = True
        _set_alarm(watchdog_secs)
        MPI.Finalize()
        _set_alarm(0.0)

    def _end_without_the_others(self, waited_secs: float, code: int) -> None:
        """Have the launcher kill ranks that don't answer (stopped, or on a node that hangs): it would wait for them as long as they are.

        An abort with 0 is a success to Open MPI and MPICH, but not under `--with-ft ulfm`.
        """
        silent = set(range(self._comm.Get_size())) - {SCHEDULER_RANK} - self._farewells - self._gone
        sys.stderr.write(
            f"smallpond_mpi: no answer from {len(silent)} ranks ({', '.join(map(str, sorted(silent)[:MAX_NAMED]))}) within {waited_secs:g} s of the end "
            "of the job: the launcher is asked to end them; what was computed is safe\n"
        )
        sys.stderr.flush()
        self.abort(code)

    def _all_leave(self, deadline: float) -> bool:
        """Meet all that are alive: each says goodbye to rank 0, which then says it to all. Messages, because a barrier doesn't survive a death."""
        if self._comm.Get_rank() == SCHEDULER_RANK:
            others = set(range(self._comm.Get_size())) - {SCHEDULER_RANK}
            return (
                self._poll_until(lambda: others <= self._farewells | self._gone, deadline)
                and self._say_goodbye(others)
                and self._poll_until(lambda: not self._outgoing, deadline)
            )
        # rank 0 may run the user's script for as long as it likes: only its death, or the launcher's, ends the wait
        parent = os.getppid()
        self._say_goodbye({SCHEDULER_RANK})
        while SCHEDULER_RANK not in self._farewells | self._gone:
            if os.getppid() != parent:
                return False
            self.poll()
            time.sleep(REST_SECS)
        return True

    def _poll_until(self, is_so: Callable[[], bool], deadline: float) -> bool:
        while not is_so():
            if self._clock() >= deadline:
                return False
            self.poll()
            time.sleep(CLOSE_POLL_SECS)
        return True

    def _say_goodbye(self, peers: set[int]) -> bool:
        for peer in peers - self._gone:
            outgoing = self._outgoing.setdefault(peer, _Outgoing())
            outgoing.waiting.append((b"", GOODBYE))
            self._push(peer, outgoing)
        return True

    def leave(self, code: int) -> NoReturn:
        """End this process after `finalize`, without Python's own end but with C's: MPICH tells its launcher only there that all is well,
        and the launcher kills the whole job if it isn't told.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        _set_alarm(LEAVE_SECS)
        ctypes.CDLL(None).exit(code)
        os._exit(code)

    def abort(self, code: int) -> None:
        """End the whole job with this exit code. Does not return.

        Under `--with-ft ulfm` Open MPI 5.0 doesn't end it: not a rank that is stopped, and now and then nobody, when two ranks abort at once. The launcher
        that started this rank does as it is ended itself, with an exit code of 1 whatever ours would be.
        """
        has_ulfm = os.environ.get("OMPI_MCA_mpi_ft_enable", "0") != "0"  # noqa: SIM112 Open MPI's own spelling
        launcher = ancestor_named(ULFM_LAUNCHERS) if has_ulfm else None
        if launcher is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(LAST_WORD_SECS)  # it passes on nothing any more once it is told
            os.kill(launcher, signal.SIGTERM)
            time.sleep(ABORT_SECS)
        _set_alarm(ABORT_SECS)
        MPI.COMM_WORLD.Abort(code)


def _set_alarm(secs: float) -> None:
    """Have the kernel end this process after `secs`; 0.0 takes that back."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, secs)


def _can_tell_failures(comm: MPI.Intracomm) -> bool:
    """Whether this MPI has ULFM, and the job was launched with it."""
    try:
        comm.Get_failed().Free()
    except (NotImplementedError, MPI.Exception):
        return False
    return True


def start(env: Mapping[str, str]) -> tuple[MpiTransport, World]:
    """Initialise MPI and meet the others: the only collectives of the whole run.

    Raises:
        SmallpondError: the launcher started several processes, but the MPI library of mpi4py sees each of them alone.
    """
    if not MPI.Is_initialized():
        # its one-sided component, which nobody uses here, takes a second to find out that there is no fabric
        os.environ.setdefault("OMPI_MCA_btl", "^ofi")
        if has_long_addresses(env, MPI.Get_library_version()):
            os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    refuse_singletons(env, MPI.COMM_WORLD.Get_size(), MPI.Get_library_version())
    if launcher_of(env) == SRUN:
        _leave_init_together()
    comm = MPI.COMM_WORLD.Dup()
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    rank = Rank(comm.Get_rank())
    me = discover.local_rank(rank, env)
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    local: tuple[LocalRank, ...] = tuple(node.allgather(me))
    capacity = discover.capacity(rank, local, env, world_size=comm.Get_size())
    return MpiTransport(comm), World(rank, comm.Get_size(), socket.gethostname(), local, capacity)


def _leave_init_together() -> None:
    """Wait until every rank is out of MPI_Init, if this library is one over PMIx.

    Open MPI 5 ends MPI_Init with a fence without data, which Slurm 22.05 lets everybody through at once (measured), and crashes over a message that comes before it
    is ready (open-mpi/ompi#12495): in one of 20 starts of three ranks under load. A fence that collects data is waited for.
    """
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "/libpmix.so" in line}
    for pmix in map(ctypes.CDLL, paths):
        if hasattr(pmix, "PMIx_Info_load"):
            info = ctypes.create_string_buffer(PMIX_INFO_BYTES)
            pmix.PMIx_Info_load(info, b"pmix.collect", ctypes.byref(ctypes.c_bool(True)), ctypes.c_uint16(PMIX_BOOL))
            pmix.PMIx_Fence(None, ctypes.c_size_t(0), info, ctypes.c_size_t(1))


def refuse_singletons(env: Mapping[str, str], world_size: int, library: str) -> None:
    """Raise if the launcher started several processes and each of them is a world of its own. One of them says so, the others just leave."""
    size = launched_size(env)
    if world_size > 1 or size <= 1:
        return
    if launched_rank(env) not in (0, None):
        time.sleep(LAST_WORD_SECS)  # some launchers end everybody at the first that fails
        raise SystemExit(1)
    option = "pmix" if "Open MPI" in library else "pmi2"
    raise SmallpondError(
        f"{launcher_of(env)} started {size} processes, but each of them is alone in its MPI world: the launcher and the MPI library that mpi4py "
        f"has loaded ({_short(library)}) don't belong together. Start the job with that library's own mpirun (`smallpond-mpi run` finds it), or with "
        f"`srun --mpi={option}`, which this library understands; `srun --mpi=list` shows what your Slurm has."
    )


def library_version() -> str:
    """The MPI library that mpi4py has loaded, in a few words."""
    return _short(MPI.Get_library_version())


def _short(library: str) -> str:
    return library.partition("\n")[0].strip().rstrip("\x00").partition(", package")[0]
