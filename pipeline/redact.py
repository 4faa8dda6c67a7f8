"""Text without the credentials in it.

Whatever is written or shown and may hold an address passes through here.
"""

import re

# User and password end at the last @ before the path; a password that holds a slash itself is met by the second half.
_USERINFO = re.compile(r"(?<=://)(?:[^/\s]*@|[^:/\s]*:[^@\s]*@)")
_QUERY = re.compile(r"(?i)([?&](?:password|passwd|pwd|token|access_token|api_key|secret|sig|signature)=)[^&\s'\"]+")


def redact(text: str) -> str:
    """Return `text` with the credentials of every URI in it replaced by `***`.

    User, password and the values of telling query parameters (`?token=`) go; host, path and the rest stay.
    """
    return _QUERY.sub(r"\1***", _USERINFO.sub("***@", text))
