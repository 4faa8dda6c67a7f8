import pytest

from launch import network
from pipeline.errors import UsageError


def test_the_loopback_interface() -> None:
    assert network.own_address("127.0.0.1:9") == "127.0.0.1"
    assert network.is_here("localhost:9")
    assert network.interface_of("127.0.0.1") == "lo"
    assert network.interface_of("192.0.2.1") == "lo"


@pytest.mark.parametrize("text", ["host", "host:", ":1", "host:x", "host:70000"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(UsageError, match="write HOST:PORT"):
        network.split(text)


def test_a_host_that_is_not_known() -> None:
    with pytest.raises(UsageError, match=r"can't reach no-such-host\.invalid"):
        network.own_address("no-such-host.invalid:1")
