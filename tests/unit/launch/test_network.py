import os
import signal
import socket
import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

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


def test_a_store_answers_and_minds_nothing() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    for _ in range(3):
        network.await_answer(f"127.0.0.1:{store.port}", 20)
    other = TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=20))
    other.set("key", "value")
    assert store.get("key") == b"value"


@pytest.fixture
def silent() -> str:
    """An endpoint at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_host_that_does_not_answer(silent: str) -> None:
    with pytest.raises(ConnectionError, match=r"no answer within 0\.1 s \(Connection refused\)"):
        network.await_answer(silent, 0.1)


def test_a_signal_ends_the_wait(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("stopped")

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(RuntimeError, match="stopped"):
            network.await_answer(silent, 60)
    finally:
        signal.signal(signal.SIGUSR1, before)
