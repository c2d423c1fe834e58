"""Several processes of one run: how they find each other, what they exchange, and what is said when one fails.

Each process runs the same code on the same keys and its own rows (`gentk.processes.rows`); the first one, rank 0,
alone writes and speaks. Three rules keep them together:

* what all must know travels in the exchange that follows: a loss that is not finite and a stop signal beside the
  gradients (`engine/updates.py`), whatever is wrong with the run folder as rank 0's answer (`Group.from_first`);
* who fails anywhere else leaves its words in the store that all share and ends. The others' next exchange breaks, and
  they end with these words and the same exit code, or name the process that is gone;
* no exchange waits longer than `world.timeout()`.

Texts are exchanged as JSON, tensors as tensors: nothing that a process receives is executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gentk.engine import world
from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed, Stopped

T = TypeVar("T")
_KINDS: dict[int, type[GentkError]] = {2: RecipeError, 3: MissingAsset, 75: Stopped}
_PARTING = 20.0  # seconds that rank 0 has to write how the run ended
_PATIENCE = 3.0  # seconds in which the words of a process that failed must have come


@dataclass
class Group:
    """The processes of a run; `Group()` is one alone, whose exchanges do nothing."""

    rank: int = 0
    size: int = 1
    store: Any = None
    places: list[dict[str, Any]] = field(default_factory=list)  # host and process number of each
    _waits: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def texts(self, text: str) -> list[str]:
        """The text that each process gave, by rank."""
        if self.size == 1:
            return [text]
        data = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._exchanged(lambda: _gather(lengths, torch.tensor([len(data)])))
        longest = int(max(lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = data
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        self._exchanged(lambda: _gather(found, padded))
        return [t[: int(n)].numpy().tobytes().decode().strip("\0") for t, n in zip(found, lengths, strict=True)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, plain JSON, for all; a GentkError that it raises is raised by all."""
        if self.size == 1:
            return make()
        answer: dict[str, Any] = {}
        fault: GentkError | None = None
        if self.first:
            try:
                answer = {"made": make()}
            except GentkError as e:
                e.shared = True
                fault, answer = e, {"fault": _words(e)}
        self.wait()
        answer = json.loads(self.texts(json.dumps(answer))[0])
        if fault is not None:
            raise fault
        if "fault" in answer:
            raise _error(answer["fault"], told=True)
        return answer["made"]

    def add(self, x: Tensor) -> None:
        """Puts the sum over all processes into x."""
        if self.size > 1:
            from torch import distributed

            self._exchanged(lambda: distributed.all_reduce(x))

    def rows(self, x: Tensor) -> Tensor:
        """The rows of all processes, those of rank 0 first: (n, ...) -> (size n, ...), without graph."""
        if self.size == 1:
            return x
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self._exchanged(lambda: _gather(found, x.detach().contiguous()))
        return torch.cat(found)

    def spread(self, parts: Sequence[T], make: Callable[[T], Tensor]) -> list[Tensor]:
        """`make` of each part, on the CPU, in order: each process makes every size-th, and all get all.

        So `make` must give the same whoever calls it.
        """
        if self.size == 1:
            return [make(part) for part in parts]
        from torch import distributed

        own = {i: make(part).cpu().contiguous() for i, part in enumerate(parts) if i % self.size == self.rank}
        shapes: dict[str, Any] = {}
        for text in self.texts(json.dumps({i: [list(x.shape), str(x.dtype)[6:]] for i, x in own.items()})):
            shapes |= json.loads(text)
        found = []
        for i in range(len(parts)):
            shape, kind = shapes[str(i)]
            x = own[i] if i in own else torch.empty(shape, dtype=getattr(torch, kind))
            self._exchanged(lambda x=x, i=i: distributed.broadcast(x, i % self.size))  # type: ignore[misc]
            found.append(x)
        return found

    def wait(self) -> None:
        """Returns when all processes have come here, however long that takes: one may have much to do alone.

        Raises what a process that does not come has failed of.
        """
        if self.size == 1:
            return
        self._waits += 1
        pause = 0.005
        try:
            self.store.set(f"here/{self._waits}/{self.rank}", "")
            while not self.store.check([f"here/{self._waits}/{r}" for r in range(self.size)]):
                time.sleep(pause)
                pause = min(0.2, 1.5 * pause)
                if pause == 0.2 and (self._failed() is not None or self._gone()):
                    raise RuntimeError("it does not come")
        except RuntimeError as e:
            raise self._lost(e) from e
        self.texts("")  # rank 0 may keep the store: it must not leave before the others have seen that all are here

    def tell(self, error: GentkError) -> None:
        """Leaves the words of a failure of this process for the others, who do not know of it yet."""
        if self.size > 1 and not error.shared:
            with contextlib.suppress(RuntimeError):  # the store may be gone with the process that kept it
                self.store.set(f"failure/{self.rank}", json.dumps(_words(error)))

    def failure(self, rank: int) -> GentkError:
        """What process `rank`, which has told, has failed of."""
        return _error(self.words(rank), place=f"rank {rank}: ", told=not self.first)

    def words(self, rank: int) -> dict[str, Any]:
        """Code, kind, text and hint of its failure."""
        found: dict[str, Any] = json.loads(self.store.get(f"failure/{rank}"))
        return found

    def _exchanged(self, act: Callable[[], object]) -> None:
        """Does an exchange. Raises what another process has failed of, or RunFailed naming who is gone."""
        try:
            act()
        except (RuntimeError, ValueError) as e:
            raise self._lost(e) from e

    def _lost(self, cause: Exception) -> GentkError:
        end = time.monotonic() + _PATIENCE
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end:
                rank = self._failed()
                if rank is not None:
                    failure = self.failure(rank)
                    self.store.set(f"read/{self.rank}", "")
                    return failure
                if self._gone():
                    break
                time.sleep(0.1)
        gone = self._gone()
        if gone:
            who = ", ".join(f"rank {r} (process {self.places[r]['pid']} on {self.places[r]['host']})" for r in gone)
            what = f"{who} is gone" if len(gone) == 1 else f"{who} are gone"
        elif "imed out" in str(cause) or "imeout" in str(cause):
            what = f"waited {world.timeout():g} s in vain for another process"
        else:
            what = "lost another process"
        line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        error = RunFailed(
            f"rank {self.rank}: {what} ({line[:200]})",
            hint="what it said last tells why; the same command goes on from the last checkpoint"
            + ("; GENTK_DIST_TIMEOUT=SECONDS waits longer" if "in vain" in what else ""),
        )
        error.shared = True
        return error

    def _failed(self) -> int | None:
        """A process that has left words."""
        for rank in range(self.size):
            if rank != self.rank and self.store.check([f"failure/{rank}"]):
                return rank
        return None

    def _gone(self) -> list[int]:
        """The processes on this machine that have ended."""
        here = platform.node()
        return [r for r, p in enumerate(self.places) if p["host"] == here and _dead(int(p["pid"]))]


_current = Group()
_kept: list[Any] = []  # the store, kept open from one meeting to the next


def current() -> Group:
    """The group that this process has joined, or itself alone."""
    return _current


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For what one process of the group does by itself: exchanges in the block do nothing."""
    global _current
    before, _current = _current, Group()
    try:
        yield
    finally:
        _current = before


@contextlib.contextmanager
def joined(facts: dict[str, Any], device: str) -> Iterator[Group]:
    """The group that the environment speaks of, for the block; alone where it speaks of none.

    `facts` must be alike in all processes: raises RecipeError naming what differs, in all of them; RunFailed where not
    all come.
    """
    global _current
    if world.size() == 1:
        yield _current
        return
    from torch import distributed

    try:
        _place(device)
        group = _meet()
    except GentkError as e:
        e.shared = True  # it names its rank, and no other process says it
        raise
    _current = group
    try:
        group.places = [json.loads(t) for t in group.texts(json.dumps({"host": platform.node(), "pid": os.getpid()}))]
        _alike(group, facts)
        yield group
    except GentkError as e:
        group.tell(e)
        if group.first and not e.shared and not _by_agent():
            _heard(group)
        _last(group)
        raise
    finally:
        _current = Group()
        with contextlib.suppress(RuntimeError, ValueError, AssertionError):  # gone already
            if group.first:
                group.store.set("left", "")
            distributed.destroy_process_group()


def _last(group: Group) -> None:
    """Lets rank 0 leave before the others: it has a state to write down, and launchers end all when one has failed."""
    end = time.monotonic() + _PARTING
    near = bool(group.places) and group.places[0]["host"] == platform.node()  # then the store need not be asked
    with contextlib.suppress(RuntimeError):  # the store has gone with rank 0
        while not group.first and time.monotonic() < end and 0 not in group._gone():
            if not near and group.store.check(["left"]):
                return
            time.sleep(0.05)


def _heard(group: Group) -> None:
    """Rank 0, which keeps the store, stays until the others have read there what it has failed of."""
    from torch import distributed

    end = time.monotonic() + _PARTING  # one may be far from its next exchange
    with contextlib.suppress(RuntimeError):
        distributed.destroy_process_group()  # breaks the exchange that they wait in
        while time.monotonic() < end:
            gone = group._gone()
            if all(r in gone or group.store.check([f"read/{r}"]) for r in range(1, group.size)):
                return
            time.sleep(0.02)


def _by_agent() -> bool:
    """Whether torchrun itself keeps the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _place(device: str) -> None:
    """Each process takes the device of its number on this machine."""
    if device == "cpu" or not torch.cuda.is_available():
        return
    own, count = world.local_rank(), torch.cuda.device_count()
    if own >= count:
        raise RecipeError(
            f"rank {world.rank()}: process {own + 1} on {platform.node()}, which has {count} CUDA devices",
            hint=f"torchrun --nproc-per-node {count}, or --device cpu",
        )
    torch.cuda.set_device(own)


def _meet() -> Group:
    """Finds the other processes. Raises RecipeError where they expect another number, RunFailed where some stay out."""
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    rank, size, limit = world.rank(), world.size(), timedelta(seconds=world.timeout())
    if os.environ["MASTER_PORT"] == "0":  # torchrun hands it on as it is, and nobody would ever be met there
        raise RecipeError(
            f"rank {rank}: MASTER_PORT is 0, which is no address", hint="leave torchrun's --master-port out"
        )
    try:
        if not _kept:
            _kept.append(
                TCPStore(
                    os.environ["MASTER_ADDR"],
                    int(os.environ["MASTER_PORT"]),
                    is_master=rank == 0 and not _by_agent(),
                    wait_for_workers=False,
                    timeout=limit,
                )
            )
        _kept.append(None)  # one entry for each meeting of this process: a sweep has many
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"gentk/{attempt}/{len(_kept)}", _kept[0])
        store.set(f"size/{rank}", str(size))
        for other in range(size):
            store.wait([f"size/{other}"], limit)
            theirs = int(store.get(f"size/{other}"))
            if theirs != size:
                store.set(f"seen/{rank}", "")
                if rank == 0:  # it may keep the store, and the others must have read its size there
                    with contextlib.suppress(RuntimeError):
                        store.wait([f"seen/{r}" for r in range(1, size)], timedelta(seconds=_PATIENCE))
                raise RecipeError(
                    f"rank {rank}: started as one of {size} processes, rank {other} as one of {theirs}",
                    hint="all nodes need the same torchrun --nnodes and --nproc-per-node",
                )
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError) as e:
        raise RunFailed(
            f"rank {rank}: not all {size} processes have come within {limit.total_seconds():g} s: "
            f"{str(e).splitlines()[0][:200]}",
            hint="MASTER_ADDR and MASTER_PORT must be reachable from all nodes, and a process that failed says why",
        ) from e
    return Group(rank, size, store)


def _alike(group: Group, facts: dict[str, Any]) -> None:
    """Raises RecipeError where a process has other facts than rank 0."""
    told = [json.loads(text) for text in group.texts(json.dumps(facts, default=str))]
    for rank, theirs in enumerate(told):
        names = [name for name in {**told[0], **theirs} if theirs.get(name) != told[0].get(name)]
        if names:
            rows = [f"{name}: {told[0].get(name)} on rank 0, {theirs.get(name)} on rank {rank}" for name in names[:3]]
            error = RecipeError(
                f"the processes disagree: {'; '.join(rows)}" + ("; ..." if names[3:] else ""),
                hint="give all nodes the same command, the same recipe and the same installation",
            )
            error.shared, error.told = True, not group.first
            raise error


def _gather(found: list[Tensor], own: Tensor) -> None:
    from torch import distributed

    distributed.all_gather(found, own)


def _words(error: GentkError) -> dict[str, Any]:
    return {"code": error.code, "kind": type(error).__name__, "text": str(error), "hint": error.hint}


def _error(words: dict[str, Any], *, place: str = "", told: bool) -> GentkError:
    found = _KINDS.get(words["code"], RunFailed)(place + words["text"], hint=words["hint"])
    found.shared, found.told = True, told
    return found


def _dead(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False
    return state in "ZX"
