"""Which errors of storage may pass by themselves, and which will be there at the next attempt, too.

A network disk that hiccups, and object storage that is slow, away or asks for patience, are there again in a while. A
full disk, a missing permission or a table that is no table are not.
"""

from __future__ import annotations

import errno
import re

from csip.errors import StorageFaultError, StoreError

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EPIPE", "EAGAIN", "EINTR"),
        *("ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
)
# Lance's errors are text. Behind "after N retries" stands what its client of object storage took for passing, too.
_NUMBER = re.compile(r"\(os error (\d+)\)")
_SAID = re.compile(
    r"after [1-9]\d* retries, max_retries|status code: (?:408|429|5\d\d) |error sending request|operation timed out"
)


def may_pass(error: BaseException) -> bool:
    """Tell whether another attempt may succeed, by the error's number or by what Lance says."""
    number = getattr(error, "errno", None)
    told = str(error)
    return (
        number in _PASSING
        or any(int(said) in _PASSING for said in _NUMBER.findall(told))
        or _SAID.search(told) is not None
    )


def store_error(text: str, error: BaseException) -> StoreError:
    """Make what a store raises, of the kind that `error` is of.

    Args:
        text: what was found and expected, where, and what to do next.
        error: whose fault it is.
    """
    if may_pass(error):
        return StorageFaultError(f"{text} Such a fault may pass by itself; then the same command goes on.")
    return StoreError(text)
