"""What an error of a tracking store says: trouble on the way that may pass, or a refusal of what was sent."""

import re

from pipeline.redact import redact

_PASSING = (408, 429, 502, 503, 504)
_PASSING_CODES = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
_FOR_GOOD = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS"}
_STATUS = re.compile(r"too many (\d{3}) error responses|failed with error code (\d{3}) ")
_TOO_LARGE = 413


def unreachable(error: BaseException | None) -> bool:
    """Return whether an error comes from the way to the store or from a busy store, so that trying again may help."""
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import Timeout

    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError | NoConnection | Timeout):
            return True
        if getattr(error, "error_code", None) in _PASSING_CODES or _status(error) in _PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def for_good(error: BaseException) -> bool:
    """Return whether a store has answered that it does not take what it was sent, and so never will."""
    if unreachable(error):
        return False
    return getattr(error, "error_code", None) in _FOR_GOOD or _status(error) == _TOO_LARGE


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells of; MLflow and requests tell some only in words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return int(status)
    told = _STATUS.search(str(error))
    return int(told[1] or told[2]) if told else None


def one_line(error: BaseException) -> str:
    """Return the first line of an error, without credentials."""
    text = str(error).strip() or type(error).__name__
    return redact(text.splitlines()[0])[:300]
