"""What each rank did last: the evidence beside the end of a round."""

from __future__ import annotations

import json
import logging
from typing import List
from urllib.parse import quote

from esperd._http import Absent, Connection, Lost, Silent, Unreadable
from esperd.evidence import LastCall

_ANSWER_MAX_S = 0.3  # a node that is gone must not keep the end of the round from anybody

_log = logging.getLogger("esperd")


def last_calls(socket: str, model: str) -> List[LastCall]:
    """Return the last call of each rank, as far as it can be known soon."""
    connection = Connection(socket, _ANSWER_MAX_S)
    try:
        status, answer = connection.request("GET", f"/v1/ranks?model={quote(model, safe='')}")
        ranks = json.loads(answer)["ranks"] if status == 200 else []
        return [LastCall.of(r["last"]) for r in ranks if r.get("last")]
    except (Absent, Lost, Silent, Unreadable, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        _log.debug("what the ranks did last: %s", error)
        return []
    finally:
        connection.close()
