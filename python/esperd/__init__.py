"""The trainer's side of esperd: rank 0's decisions, the same on every rank.

See :func:`connect` for where to begin, and the README beside this package for
loops, failures and what to do about them.
"""

# The files, in reading order:
#
#   client.py, _slot_calls.py       what a trainer calls, and slots.py what it may call instead
#   settings.py                     what it says when it connects
#   values.py, evidence.py          what calls and errors bring
#   errors.py                       what calls raise
#   _arguments.py, _gate_results.py what they take, as it is sent
#   _identity.py, _trainer.py       who calls, _site.py from where
#   _family.py                      the models of one trainer
#   _calls.py, _riders.py           numbered calls, and the observations that ride with them
#   _observed.py                    the same in the mode observe
#   _unnumbered.py                  request, busy, close and what check() looks at (_word.py)
#   _faults.py, _last_calls.py      on_fatal, and the evidence it brings
#   _ending.py                      how the trainer ended
#   _door.py, _http.py, _answer.py  asking esperd, from patience down to bytes
#   _memory_calls.py, _arena.py     modules in the seeds' memory
#   _handover.py, _mapped.py        how it comes here, of the host or of a GPU
#   _fingerprint.py                 tensors on a GPU, fingerprinted there
#   _cuda.py, _dlpack.py            libcuda, and tensors over its memory
#   _torch_gpu.py                   what is asked of torch.cuda
#   _launch.py                      starting an esperd
#   _slot_objects.py                what slots.py reads of a slot object

from esperd._launch import Launched, launch
from esperd._mark import Mark, OfferedMark
from esperd._unnumbered import Busy
from esperd.client import Client, connect
from esperd.errors import (
    ArenaLost,
    ConfigMismatch,
    DecisionTimeout,
    Diverged,
    EsperdError,
    MarkMismatch,
    MissingCall,
    NoRoom,
    OrderMismatch,
    Refused,
    RoundFaulted,
    Unavailable,
)
from esperd.evidence import Fault, Key, LastCall
from esperd.settings import Blueprint, Gates, Outcome, SlotConfig, Tensor
from esperd.values import (
    Change,
    Command,
    Controller,
    Decision,
    Difference,
    Done,
    Fence,
    Metrics,
    Session,
    Slot,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "ArenaLost",
    "Blueprint",
    "Busy",
    "Change",
    "Command",
    "Client",
    "ConfigMismatch",
    "Controller",
    "Decision",
    "DecisionTimeout",
    "Difference",
    "Diverged",
    "Done",
    "EsperdError",
    "Fault",
    "Fence",
    "Gates",
    "Key",
    "LastCall",
    "Launched",
    "Mark",
    "MarkMismatch",
    "Metrics",
    "MissingCall",
    "NoRoom",
    "OfferedMark",
    "OrderMismatch",
    "Outcome",
    "Refused",
    "RoundFaulted",
    "Session",
    "Slot",
    "SlotConfig",
    "Tensor",
    "Unavailable",
    "Verdict",
    "connect",
    "launch",
]
