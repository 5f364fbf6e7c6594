"""The trainer's calls.

    ep = esperd.connect(slots=["r0c0", "r0c1"], mode="follow")
    for epoch in range(epochs):
        ...                                          # train and evaluate
        ep.observe("r0c0", accuracy=accuracy)
        if ep.rank == 0:
            ep.advance("r0c0")                       # and whatever else the policy wants
        for change in ep.step_epoch(epoch).changes:  # the same on every rank
            apply(change)
"""

from __future__ import annotations

import base64
import logging
import os
import secrets
from types import TracebackType
from typing import Any, Dict, Optional, Sequence, SupportsFloat, SupportsIndex, Tuple, Type, Union

from esperd import _launch
from esperd._arguments import GatesArgument, OutcomesArgument, SlotsArgument, configuration_of, fraction, name_of, octets, one_of, outcomes_of, text, whole
from esperd._calls import RESET, RESUME, Calls
from esperd._ending import failure_of
from esperd._family import MAIN, Family
from esperd._faults import OnFatal, watch
from esperd._identity import fingerprint as fingerprint_of
from esperd._identity import identity, socket_path
from esperd._mark import Mark
from esperd._memory_calls import MemoryCalls
from esperd._observed import Observed
from esperd._slot_calls import SlotCalls
from esperd._trainer import KEYED, MODES, OBSERVE, ORDERINGS, STRICT, Trainer
from esperd._unnumbered import Busy
from esperd.values import Fence, Session, Slot

__all__ = ["Client", "connect"]

_SLOTS_SHOWN_MAX = 16

_log = logging.getLogger("esperd")


def connect(
    socket: Union[str, "os.PathLike[str]", None] = None,
    *,
    rank: Optional[int] = None,
    world_size: Optional[int] = None,
    slots: Optional[SlotsArgument] = None,
    gates: Optional[GatesArgument] = None,
    auto_forward: Sequence[str] = (),
    mode: str = KEYED,
    ordering: str = STRICT,
    resume: Optional[bytes] = None,
    residency: bool = False,
    arena: bool = False,
    on_fatal: Optional[OnFatal] = None,
    run_id: Optional[str] = None,
    fingerprint: Optional[str] = None,
    away_timeout: float = 60.0,
    answer_timeout: float = 60.0,
) -> "Client":
    """Connect to the esperd of this rank, and configure the model ``main``.

    It returns when the trainers of all ranks have connected: together they are
    a new round, also after the last one was faulted.

    Args:
        socket: path of the trainer's door, in which ``{rank}`` becomes the rank.
            None: that of the esperd which :func:`esperd.launch` started, else
            ESPERD_SOCKET.
        rank, world_size: None: from ESPERD_*, torchrun's, SLURM's or MPI's
            variables, else rank 0 of 1.
        slots: the model's slots in slot order: names, or a mapping from names to
            :class:`SlotConfig` (or None). A fresh log is configured by them, an
            existing one is compared. None: as the log has them.
        gates: thresholds of all slots that have none of their own.
        auto_forward: gates that an epoch step tries by itself.
        mode: the same on all ranks. ``"keyed"``: every rank makes the same calls.
            ``"follow"``: rank 0 makes them, the others only fence (and observe,
            request and so on), and what rank 0 decides is seen at fences.
            ``"observe"``: nothing is decided; every call says by ``outcome``
            what the trainer did by itself, and neither waits nor fails.
        ordering: ``"strict"``: the ranks' calls are compared one by one.
            ``"warn"``: a rank may make its calls between two fences in another
            order, or leave some out, which is recorded.
        resume: a mark, as :meth:`Client.checkpoint` returned it: the model goes
            back to it before anything else, as by :meth:`Client.resume`. A log
            that knows no model is begun by it, with its slots, unless there are
            slots here. None: the log goes on where it ends.
        residency: the same on all ranks. True: in this round a germinated seed
            waits until every rank has said that it has room for it, by
            :meth:`Client.ready`; it may train from the fence after the one by
            which the last of them did.
        arena: the parameters of seeds whose blueprints the slots list as
            :class:`Blueprint` lie in memory that esperd lays out and initialises,
            the same bits on every rank; modules are bound to it by
            :meth:`Client.attach`. esperd then votes on the room by itself. With
            ``--device auto`` they are on the GPU that is torch's current one now
            (``torch.cuda.set_device`` comes first), else on the host.
        on_fatal: called with a :class:`RoundFaulted`, in a thread of its own, as
            soon as the round is over because the ranks did not make the same
            calls, or because a rank's trainer is gone or its replica differs
            (a :class:`Diverged` where this rank's state may be wrong): the place to end the
            process or its process group, which may be waiting in a collective
            that never completes. It is not called on the rank whose own call
            ended the round: that call raises, and says more.
        run_id: the run that this trainer believes to be in. None: ESPERD_RUN_ID,
            else any.
        fingerprint: tells one rendezvous from another, the same on all ranks.
            None: ESPERD_ROUND, else from MASTER_ADDR, MASTER_PORT, the world size
            and the restart count, else from SLURM's job and step.
        away_timeout: seconds that esperd may be away, now or in the middle of
            the training, before :class:`Unavailable` is raised.
        answer_timeout: seconds without a sign of life of esperd before
            :class:`Unavailable` is raised. As long as it lives, a call waits: it
            is esperd that gives up, after 15 minutes, and says who is missing.

    The log of a run outlives its trainers. Where it is not a fresh one, a line
    at level INFO of the logger ``esperd`` says what is in it;
    :meth:`Client.reset` starts the model anew, and resume takes it back to where
    the weights are.

    Raises:
        ConfigMismatch: rank, world size, run or model are not esperd's.
        MarkMismatch: the ranks have not the same mark, or none of this run.
        DecisionTimeout: not all ranks connected, or resumed.
        Unavailable: there is no esperd; the text says how to start one.
        ValueError: mode or ordering is none of those above.
    """
    mark = None if resume is None else octets("resume", resume)
    mode, ordering = one_of("mode", mode, MODES), one_of("ordering", ordering, ORDERINGS)
    env = os.environ
    who = identity(rank, world_size, env)
    trainer = Trainer(
        socket=socket_path(socket, _launch.current_socket(), env, who.rank),
        rank=who.rank,
        world_size=who.world_size,
        run_id=env.get("ESPERD_RUN_ID", "") if run_id is None else run_id,
        fingerprint=fingerprint_of(env, who.world_size) if fingerprint is None else fingerprint,
        incarnation=secrets.token_hex(16),
        away_timeout_s=float(away_timeout),
        answer_timeout_s=float(answer_timeout),
        pid=os.getpid(),
        mode=mode,
        ordering=ordering,
        residency=bool(residency),
        arena=bool(arena),
        gpu=_gpu() if arena else "",
    )
    family = Family(trainer, Client)
    client = family.open(MAIN, configuration_of(slots, gates, auto_forward), mark=mark or b"")
    family.opened()
    family.watch = watch(trainer, client.session.round, on_fatal)
    if mark is None:
        _tell_of_before(client)
        return client
    try:
        client.resume(mark)
    except BaseException as error:  # nobody has the client, to close it
        family.close(failure_of(error))
        raise
    return client


def _gpu() -> str:
    from esperd._cuda import uuid_of_torch

    return uuid_of_torch()


def _tell_of_before(client: "Client") -> None:
    """Say what trainers before this one have left in the log, if they have."""
    session, slots = client.session, client.slots().values()
    if session.epoch < 0 and session.generation == 1 and not any(s.germinations for s in slots):
        return
    held = [f"{s.name} {s.stage}" for s in slots if s.stage != "DORMANT"]
    if len(held) > _SLOTS_SHOWN_MAX:
        held[_SLOTS_SHOWN_MAX:] = [f"and {len(held) - _SLOTS_SHOWN_MAX} more"]
    epoch = f"epoch {session.epoch}" if session.epoch >= 0 else "no epoch yet"
    what = ", ".join(held) or "all slots DORMANT"
    _log.info("run %s goes on where its log ends: generation %d, %s, %s", session.run_id, session.generation, epoch, what)


class Client(SlotCalls, MemoryCalls):
    """A trainer of one model. :func:`connect` makes the first one.

    A call returns the same on every rank: the state at its own place in the
    log, however far other ranks are. Calls of one client are made one after the
    other, whichever thread makes them; clients of several models work at the
    same time.

    A numbered call (all but ``observe``, ``slots``, ``checkpoint``, ``request``,
    ``busy`` and ``check``) may raise :class:`OrderMismatch`, :class:`MissingCall` and
    :class:`RoundFaulted` (the round is over), :class:`Refused`,
    :class:`DecisionTimeout`, :class:`Diverged` and :class:`Unavailable`. In the
    mode observe no call raises any of these, nor waits: the first one that
    cannot be recorded is logged as a warning.
    """

    def __init__(self, family: Family, model: str, calls: Calls) -> None:
        """Not for users: see :func:`connect` and :meth:`model`."""
        super().__init__(calls, family.trainer.mode)
        self._family = family
        self._name = model

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def rank(self) -> int:
        """This trainer's rank."""
        return self._family.trainer.rank

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self._family.trainer.world_size

    @property
    def mode(self) -> str:
        """keyed, follow or observe."""
        return self._mode

    @property
    def session(self) -> Session:
        """Run, round and generation that the client belongs to."""
        return self._calls.session

    def model(
        self,
        name: str,
        *,
        slots: Optional[SlotsArgument] = None,
        gates: Optional[GatesArgument] = None,
        auto_forward: Sequence[str] = (),
    ) -> "Client":
        """Return the client of another model of this trainer.

        It has numbers and a connection of its own, so each model may have a
        thread of its own. Without slots, gates and auto_forward a new one is
        configured as this one, and a name that is open already gives the client
        that it has. Every rank opens the same models.

        Raises:
            ConfigMismatch: the log's configuration of the model is another one.
            Refused: the model is open with another configuration.
        """
        self._family.trainer.check_process()
        configuration = configuration_of(slots, gates, auto_forward)
        return self._family.open(name_of("model", name), configuration, preset=self._family.configuration(self._name))

    def step_epoch(self, epoch: SupportsIndex, *, outcomes: Optional[OutcomesArgument] = None) -> Fence:
        """Close an epoch: tick every alpha ramp and cooldown, once for all ranks.

        It returns when rank 0 has closed it and when this rank is found to have
        made the same calls since the last fence. Apply the changes before the
        next optimizer step.

        Args:
            epoch: its number, above that of the last one.
            outcomes: in the mode observe, every slot as the trainer has it now;
                slots that are left out stay what they were.
        """
        number = whole("epoch", epoch)
        return self._fence("step_epoch", f"/v1/epochs/{number}/step", {}, outcomes, number)

    def fence(self, n: SupportsIndex, *, outcomes: Optional[OutcomesArgument] = None) -> Fence:
        """Close a stretch of calls without a tick, for loops that count steps.

        Args:
            n: its number, above that of the last one.
            outcomes: as of :meth:`step_epoch`.
        """
        return self._fence("fence", "/v1/fence", {"n": whole("n", n)}, outcomes, -1)

    def reset(self, *, outcomes: Optional[OutcomesArgument] = None) -> Fence:
        """Start the model anew, as its next generation: a fence, after which all
        slots are DORMANT, no seed was ever there, and epochs begin anew.

        Returns:
            A fence whose changes say that every seed is gone.
        """
        return self._fence("reset", RESET, {}, outcomes, -1)

    def checkpoint(self) -> Mark:
        """Take a mark of the model where this rank is, to be stored with its
        weights::

            torch.save({"model": net.state_dict(), "esperd": ep.checkpoint()}, path)

        It has no number and changes nothing; any rank may take one at any time,
        and all that have been answered the same calls take the same one. In the
        mode follow it is of the last fence. Take it right after a step or fence,
        where the network is as the fence says. In the mode observe it is empty.

        Raises:
            DecisionTimeout, Unavailable: as a numbered call.
        """
        return self._calls.checkpoint()

    def resume(self, mark: bytes, *, outcomes: Optional[OutcomesArgument] = None) -> Fence:
        """Take the model back to a mark, beside loading the weights that were
        stored with it, on every rank.

        Slots, alpha, counters, cooldowns and the epoch are the mark's afterwards.
        What the log has of later epochs stays in it, as a branch that was left.
        Nothing happens until every rank has brought the same mark. In the mode
        observe it is told as any call, and an empty one is ignored.

        Args:
            mark: bytes, as :meth:`checkpoint` returned them.
            outcomes: as of :meth:`step_epoch`.

        Returns:
            A fence, whose changes lead from what this rank saw last to the mark:
            for a network that is in memory. One that is made anew is made of its
            slots.

        Raises:
            MarkMismatch: the ranks have not brought the same mark, or it is no
                mark of this log; nothing was changed.
            ConfigMismatch: the mark's slots are configured otherwise.
        """
        data = octets("mark", mark)
        if self._mode == OBSERVE and not data:
            return Fence(-1, 0, (), self.slots())
        return self._fence("resume", RESUME, {"mark": base64.b64encode(data).decode()}, outcomes, -1)

    def slots(self) -> Dict[str, Slot]:
        """Return every slot by name, in slot order, as of the last answered call
        (in the mode follow: of the last fence): the same on every rank that has
        made the same calls."""
        return self._calls.slots()

    def check(self) -> bool:
        """Look, for the price of a memory read, whether the log has something new
        for this model since this rank's last fence.

        It is a hint: ranks may see it at different steps, early or late, so
        never enter a collective or a fence because of it. It is good for
        noticing in the training loop that the round is over, before the next
        collective, and for logging. Where esperd offers no such memory (an
        older one, or one on another machine) it returns False.

        Raises:
            RoundFaulted, Diverged: the round is over. esperd is asked for that once for
                every new entry, so a call may take a millisecond then.
        """
        calls = self._calls
        return calls.word[0] > calls.seen and calls.news()

    def request(self, action: str, *, slot: str, reason: str = "", seed: Optional[SupportsIndex] = None) -> int:
        """Ask for something that the next fence does, between the same two steps
        on every rank.

        Any rank may ask at any time, from any thread, also while another one
        waits in a call; asking twice is asking once.

        Args:
            action: ``"prune"``.
            reason: up to 1,024 bytes, for the log.
            seed: germination count of the seed that is meant. None: the one that
                this rank saw last in the slot.

        Returns:
            The index of the request's entry: it is in the log. 0 in the mode
            observe, in which esperd does nothing.

        Raises:
            Refused: there is no such seed any more, or nothing to do.
        """
        arguments: Dict[str, Any] = {"action": text("action", action), "slot": text("slot", slot), "reason": text("reason", reason)}
        if seed is not None:
            arguments["seed"] = whole("seed", seed)
        return self._calls.guarded(lambda: self._calls.unnumbered.request(arguments), 0)

    def busy(self, reason: str, seconds: SupportsFloat) -> Busy:
        """Say that this rank makes no call for a while, so that the others wait
        for it without giving up::

            with ep.busy("evaluation", 600):
                evaluate()

        What it returns may be ignored: it ends by itself. A later one takes the
        place of an earlier one, of the same trainer.

        Args:
            reason: what it does, for people; up to 256 bytes.
            seconds: from now, up to a week. 0: not busy any more.
        """
        unnumbered, what = self._calls.unnumbered, text("reason", reason)
        number = fraction("seconds", seconds)
        self._calls.guarded(lambda: unnumbered.busy(what, number), None)
        return Busy(lambda: unnumbered.busy_no_more(what))

    def close(self) -> None:
        """End the connection; a call that waits in another thread ends, too.

        Closing the client that connect() returned closes those of all models,
        and tells esperd that this trainer has ended in order. A ``with`` block
        that is left by an exception tells that it has failed, which ends the
        round on every rank; so does an exception that ends the interpreter. A
        process that ends by a signal or by os._exit is taken for dead. A model
        that was closed is not opened again by this trainer.
        """
        if self._name == MAIN:
            self._family.close()
        self._calls.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        if self._name == MAIN:
            self._family.close(failure_of(error))
        self._calls.close()

    def __repr__(self) -> str:
        t = self._family.trainer
        return f"<esperd.Client of model {self._name!r}, rank {t.rank} of {t.world_size}, at {t.socket}>"

    def __reduce__(self) -> Tuple[Any, ...]:
        raise TypeError("an esperd.Client is of the process that connected, and cannot be copied or sent to another one")

    def _fence(self, what: str, path: str, arguments: Dict[str, Any], outcomes: Optional[OutcomesArgument], epoch: int) -> Fence:
        begins = what in ("reset", "resume")
        arguments.update(outcomes_of(what, outcomes, self._mode, needed=not begins))
        if isinstance(self._calls, Observed):
            return self._calls.tell_fence(path, arguments, epoch, begins)
        if self._arena is not None:
            self._memory().before_fence()
        fence = self._calls.call(path, arguments, self._calls.read_fence, fences=True, begins=begins)
        if fence.arena is not None:
            fence.__dict__["lost"], fence.__dict__["moved"] = self._memory().fenced(fence, fence.arena)
        return fence
