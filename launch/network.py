"""Where this node is on the network: its address towards another, and the interface that has it."""

import fcntl
import socket
import struct
import time

from pipeline.errors import UsageError

_SIOCGIFADDR = 0x8915  # Source: linux/sockios.h
_CONNECT_S, _POLL_S = 2.0, 0.2


def split(endpoint: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`.

    Raises:
        UsageError: if it is not of that form.
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UsageError(f"{endpoint!r} is not an endpoint; write HOST:PORT of the first node, such as node1:29400")
    return host.strip("[]"), int(port)


def own_address(endpoint: str) -> str:
    """Return the address from which this node reaches the host of `HOST:PORT`; nothing is sent.

    Raises:
        UsageError: if the host has no address or there is no way to it.
    """
    host, port = split(endpoint)
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(
            f"{endpoint}: this node ({socket.gethostname()}) can't reach {host}: {error.strerror}; "
            "give an address or a name that every node resolves"
        ) from error


def await_answer(endpoint: str, patience_s: float) -> None:
    """Wait until something listens at `HOST:PORT`; nothing is sent. A signal's handler may raise out of it.

    Raises:
        ConnectionError: if nothing does within the time.
    """
    place, deadline = split(endpoint), time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection(place, timeout=_CONNECT_S).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(f"no answer within {patience_s:g} s ({error.strerror or error})") from error
        time.sleep(_POLL_S)


def is_here(endpoint: str) -> bool:
    """Return whether the host of `HOST:PORT` is this node.

    Raises:
        UsageError: if the host has no address or there is no way to it.
    """
    host, port = split(endpoint)
    own = own_address(endpoint)
    return own in {place[0] for _, _, _, _, place in socket.getaddrinfo(host, port)}


def interface_of(address: str) -> str:
    """Return the name of the interface that has an IPv4 address, else `lo`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return "lo"
