"""The trainer's calls.

    ep = esperd.connect(slots=["r0c0", "r0c1"])
    for epoch in range(epochs):
        ...                                          # train and evaluate
        ep.observe("r0c0", accuracy=accuracy)
        decision = ep.advance("r0c0")                # rank 0's, on every rank
        for change in ep.step_epoch(epoch).changes:
            apply(change)
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import Any, Dict, Optional, Sequence, SupportsFloat, SupportsIndex, Tuple, Type, TypeVar, Union

from esperd import _launch
from esperd._arguments import (
    NOT_GIVEN,
    Flag,
    GatesArgument,
    Reading,
    SlotsArgument,
    configuration_of,
    fraction,
    name_of,
    readings_of,
    slot_path,
    text,
    whole,
)
from esperd._calls import Calls, Trainer
from esperd._faults import FaultWatch, OnFatal, watch
from esperd._gate_results import arguments_of, decided_as
from esperd._identity import fingerprint as fingerprint_of
from esperd._identity import identity, socket_path
from esperd.errors import Refused, Unavailable
from esperd.values import Decision, Done, Fence, Session, Slot

__all__ = ["Client", "connect"]

MAIN = "main"

_Result = TypeVar("_Result")


def connect(
    socket: Union[str, "os.PathLike[str]", None] = None,
    *,
    rank: Optional[int] = None,
    world_size: Optional[int] = None,
    slots: Optional[SlotsArgument] = None,
    gates: Optional[GatesArgument] = None,
    auto_forward: Sequence[str] = (),
    on_fatal: Optional[OnFatal] = None,
    run_id: Optional[str] = None,
    fingerprint: Optional[str] = None,
    away_timeout: float = 60.0,
    answer_timeout: float = 1000.0,
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
        on_fatal: called with a :class:`RoundFaulted`, in a thread of its own, as
            soon as the round is over because the ranks did not make the same
            calls: the place to end the process or its process group, which may
            be waiting in a collective that never completes.
        run_id: the run that this trainer believes to be in. None: ESPERD_RUN_ID,
            else any.
        fingerprint: tells one rendezvous from another, the same on all ranks.
            None: ESPERD_ROUND, else from MASTER_ADDR, MASTER_PORT, the world size
            and the restart count, else from SLURM's job and step.
        away_timeout: seconds that esperd may be away, now or in the middle of
            the training, before :class:`Unavailable` is raised.
        answer_timeout: seconds that one request may wait for its answer; above
            esperd's own longest wait (15 minutes), which says who is missing.

    Raises:
        ConfigMismatch: rank, world size, run or model are not esperd's.
        DecisionTimeout: not all ranks connected.
        Unavailable: there is no esperd; the text says how to start one.
    """
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
    )
    family = _Family(trainer)
    client = family.open(MAIN, configuration_of(slots, gates, auto_forward))
    family.watch = watch(trainer, client.session.round, on_fatal)
    return client


class Client:
    """A trainer of one model. :func:`connect` makes the first one.

    A call returns the same on every rank: the state at its own place in the
    log, however far other ranks are. Calls of one client are made one after the
    other, whichever thread makes them; clients of several models work at the
    same time.

    A numbered call (all but ``observe`` and ``slots``) may raise
    :class:`OrderMismatch`, :class:`MissingCall` and :class:`RoundFaulted` (the
    ranks did not make the same calls), :class:`Refused`,
    :class:`DecisionTimeout`, :class:`Diverged` and :class:`Unavailable`.
    """

    def __init__(self, family: "_Family", model: str, configuration: Dict[str, Any]) -> None:
        """Not for users: see :func:`connect` and :meth:`model`."""
        self._family = family
        self._name = model
        self._configuration = configuration
        self._calls = Calls(family.trainer, model, configuration)

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
        thread of its own. Without slots, gates and auto_forward it is configured
        as this one. Every rank opens the same models; a name that is open
        already gives the client that it has.

        Raises:
            ConfigMismatch: the log's configuration of the model is another one.
            Refused: the model is open with another configuration.
        """
        self._family.trainer.check_process()
        return self._family.open(name_of("model", name), configuration_of(slots, gates, auto_forward) or self._configuration)

    def germinate(
        self,
        slot: str,
        blueprint: str,
        *,
        seed: Optional[str] = None,
        blend: str = "sigmoid",
        tempo: SupportsIndex = 5,
        algorithm: str = "ADD",
        target: Optional[SupportsFloat] = None,
    ) -> Done:
        """Put a new seed into an empty slot; it is GERMINATED then.

        Args:
            blueprint: what the seed is, in the trainer's own words.
            seed: the seed's name. None: ``slot-blueprint``.
            blend: ``"linear"``, ``"sigmoid"`` or ``"gated"``.
            tempo: ticks of the blending ramp, at least 1.
            algorithm: ADD, MULTIPLY or GATE, which belongs to ``"gated"``.
            target: alpha to blend to, above 0 and at most 1. None: 1.
        """
        arguments: Dict[str, Any] = {
            "blueprint": text("blueprint", blueprint),
            "blend": text("blend", blend),
            "tempo": whole("tempo", tempo),
            "algorithm": text("algorithm", algorithm),
        }
        if seed is not None:
            arguments["seed_id"] = text("seed", seed)
        if target is not None:
            arguments["target"] = fraction("target", target)
        return self._slot(slot, "germinate", arguments, Done)

    def observe(
        self,
        slot: str,
        *,
        accuracy: Reading = NOT_GIVEN,
        gradient_ratio: Reading = NOT_GIVEN,
        gradient_norm: Reading = NOT_GIVEN,
        gradient_health: Reading = NOT_GIVEN,
        has_exploding: Flag = NOT_GIVEN,
        has_vanishing: Flag = NOT_GIVEN,
        contribution: Reading = NOT_GIVEN,
        healthy: Flag = NOT_GIVEN,
    ) -> None:
        """Record what this rank measured of the seed in a slot.

        It waits for nobody: it rides with the model's next numbered call. A
        field that is not given stays what it was, None means "not measured", and
        a value that is NaN or infinite is recorded as such and fails its gate.

        Args:
            accuracy: percent; counts an epoch of the seed. A second one before
                the next epoch step takes the first one's place.
            gradient_ratio: the seed's gradient norm over the host's.
            gradient_norm: the seed's gradient norm.
            gradient_health: 0 to 1.
            has_exploding, has_vanishing: of the seed's gradients.
            contribution: accuracy minus that with alpha 0, percentage points.
            healthy: what the fossilization gate asks for.

        Raises:
            Refused: the model has no such slot.
            TypeError: a reading is no number.
        """
        self._family.trainer.check_process()
        readings = readings_of(
            accuracy=accuracy,
            gradient_ratio=gradient_ratio,
            gradient_norm=gradient_norm,
            gradient_health=gradient_health,
            has_exploding=has_exploding,
            has_vanishing=has_vanishing,
            contribution=contribution,
            healthy=healthy,
        )
        known = self._calls.slot_names
        if slot not in known:
            some = ", ".join(known[:16])
            raise Refused(f"observe: model {self._name} has no slot {slot!r}, expected one of {some}", code="unknown-slot")
        self._calls.riders.add(slot, readings)

    def advance(self, slot: str, target: Optional[str] = None) -> Decision:
        """Ask the gate of the next stage, and enter the stage if it passes.

        Args:
            target: the stage to enter. None: the next one; FOSSILIZED is for
                good and has to be named.

        Returns:
            Rank 0's gate result, whatever this rank's own is.
        """
        arguments = {} if target is None else {"target": text("target", target)}
        return self._slot(slot, "advance", arguments, Decision)

    def verdict(
        self,
        slot: str,
        *,
        gate: str,
        passed: bool,
        score: SupportsFloat = 0.0,
        checks_passed: Sequence[str] = (),
        checks_failed: Sequence[str] = (),
        message: str = "",
    ) -> Decision:
        """Bring the trainer's own gate result, where it has gates of its own.

        Rank 0's is the decision. The gate is the same on all ranks; everything
        else may differ, which ``agreed`` says.

        Args:
            gate: G0, G1, G2, G3 or G5.
        """
        arguments = {
            "gate": text("gate", gate),
            "passed": bool(passed),
            "score": fraction("score", score),
            "checks_passed": [text("checks_passed", c) for c in checks_passed],
            "checks_failed": [text("checks_failed", c) for c in checks_failed],
            "message": text("message", message),
        }
        return self._slot(slot, "verdict", arguments, Decision)

    def sync_gate(self, slot: str, result: _Result) -> _Result:
        """Turn this rank's gate result into the decided one, of the same class.

        It is :meth:`verdict` for a loop that has gate results with the fields of
        esper-lite's ``GateResult`` and broadcasts rank 0's. There, this line
        takes the place of the body of ``SeedSlot._sync_gate_decision``::

            return ep.sync_gate(self.slot_id, gate_result)

        The seed has to be in the log: :meth:`germinate` where the trainer does.

        Args:
            result: an object with ``gate`` (G2, as a string, a number or an
                enumeration's member), ``passed``, ``score``, ``checks_passed``,
                ``checks_failed`` and ``message``. It is not changed.

        Returns:
            A copy with rank 0's values in these fields, and with ``decision``
            (the whole :class:`Decision`), ``local`` (``result``) and ``agreed``
            beside them, unless its class has no room for attributes.
        """
        decision = self._slot(slot, "verdict", arguments_of(result), Decision)
        return decided_as(result, decision)

    def prune(self, slot: str, reason: str = "", *, initiator: str = "policy") -> Done:
        """Remove a seed now. The slot is empty again 7 epoch steps later."""
        return self._slot(slot, "prune", {"reason": text("reason", reason), "initiator": text("initiator", initiator)}, Done)

    def schedule_prune(
        self,
        slot: str,
        *,
        ticks: SupportsIndex,
        curve: Optional[str] = None,
        steepness: SupportsFloat = 12.0,
        reason: str = "",
        initiator: str = "policy",
    ) -> Done:
        """Ramp a seed's alpha to 0, then remove it.

        Args:
            ticks: epoch steps until alpha is 0. 0 or less, or a seed that is not
                blended in yet: prune now.
            curve: LINEAR, COSINE or SIGMOID. None: as before.
            steepness: of SIGMOID.
        """
        arguments = {
            "ticks": whole("ticks", ticks),
            "steepness": fraction("steepness", steepness),
            "reason": text("reason", reason),
            "initiator": text("initiator", initiator),
        }
        if curve is not None:
            arguments["curve"] = text("curve", curve)
        return self._slot(slot, "schedule_prune", arguments, Done)

    def alpha_target(
        self,
        slot: str,
        *,
        target: SupportsFloat,
        ticks: SupportsIndex,
        curve: Optional[str] = None,
        steepness: SupportsFloat = 12.0,
        algorithm: Optional[str] = None,
    ) -> Done:
        """Ramp the alpha of a seed in BLENDING or HOLDING to another value.

        Args:
            target: above 0, at most 1.
            ticks: epoch steps until alpha is target.
            curve: LINEAR, COSINE or SIGMOID. None: as before.
            steepness: of SIGMOID.
            algorithm: ADD, MULTIPLY or GATE. None: as before.
        """
        arguments: Dict[str, Any] = {
            "target": fraction("target", target),
            "ticks": whole("ticks", ticks),
            "steepness": fraction("steepness", steepness),
        }
        if curve is not None:
            arguments["curve"] = text("curve", curve)
        if algorithm is not None:
            arguments["algorithm"] = text("algorithm", algorithm)
        return self._slot(slot, "alpha_target", arguments, Done)

    def step_epoch(self, epoch: SupportsIndex) -> Fence:
        """Close an epoch: tick every alpha ramp and cooldown, once for all ranks.

        It returns when rank 0 has closed it and when this rank is found to have
        made the same calls since the last fence. Apply the changes before the
        next optimizer step.

        Args:
            epoch: its number, above that of the last one.
        """
        return self._calls.fence(f"/v1/epochs/{whole('epoch', epoch)}/step", {})

    def fence(self, n: SupportsIndex) -> Fence:
        """Close a stretch of calls without a tick, for loops that count steps.

        Args:
            n: its number, above that of the last one.
        """
        return self._calls.fence("/v1/fence", {"n": whole("n", n)})

    def slots(self) -> Dict[str, Slot]:
        """Return every slot by name, in slot order, as of the last answered call:
        the same on every rank that has made the same calls."""
        return self._calls.slots()

    def close(self) -> None:
        """End the connection; a call that waits in another thread ends, too.

        Closing the client that connect() returned closes those of all models.
        A model that was closed is not opened again by this trainer.
        """
        if self._name == MAIN:
            self._family.close()
        self._calls.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        t = self._family.trainer
        return f"<esperd.Client of model {self._name!r}, rank {t.rank} of {t.world_size}, at {t.socket}>"

    def __reduce__(self) -> Tuple[Any, ...]:
        raise TypeError("an esperd.Client is of the process that connected, and cannot be copied or sent to another one")

    def _slot(self, slot: str, operation: str, arguments: Dict[str, Any], answer: "Type[_Answer]") -> "_Answer":
        return self._calls.call(slot_path(slot, operation), arguments, answer.of)


_Answer = TypeVar("_Answer", Decision, Done)


class _Family:
    """The clients of one trainer, one for each model."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.watch: Optional[FaultWatch] = None
        self._lock = threading.Lock()
        self._clients: Dict[str, Client] = {}
        self._closed = False

    def open(self, name: str, configuration: Dict[str, Any]) -> Client:
        with self._lock:
            if self._closed:
                raise Unavailable("this client was closed: expected an open one; esperd.connect() gives another")
            client = self._clients.setdefault(name, Client(self, name, configuration))
        if client._configuration != configuration:
            raise Refused(f"model {name} is open with another configuration: expected the same one, or none, to get the client that it has")
        try:
            client._calls.connect()
        except BaseException:
            client._calls.close()
            with self._lock:
                self._clients.pop(name, None)
            raise
        return client

    def close(self) -> None:
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
        if os.getpid() == self.trainer.pid and self.watch is not None:
            self.watch.stop()
        for client in clients:
            client._calls.close()
