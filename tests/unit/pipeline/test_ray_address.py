"""Addresses at which no Ray answers are told within seconds; Ray itself would try for minutes."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from runs import check_grammar

import pipeline.ray_address
from pipeline.errors import TaskError
from pipeline.ray_address import check_answers

# An empty frame of settings, which every server of HTTP/2 begins with.
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """The address of a server that answers every greeting so, or never."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                if answer is not None:
                    connection.recv(100)
                    connection.sendall(answer)
                else:
                    ended.wait(10)

        ended = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        thread.join()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ray_address, "PATIENCE_S", 0.3)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


@pytest.mark.parametrize("protocol", ["", "ray://"])
def test_a_server_of_grpc_may_be_a_cluster(protocol: str) -> None:
    with server(SETTINGS) as address:
        check_answers(protocol + address)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "no answer within"), (b"HTTP/1.1 400 Bad\r\n\r\n", "something else"), (b"", "else")],
)
def test_what_is_no_cluster_is_refused(answer: bytes | None, reason: str) -> None:
    with server(answer) as address, pytest.raises(TaskError, match=reason) as caught:
        check_answers(address)
    check_grammar(str(caught.value))
    assert address in str(caught.value)


def test_a_port_where_nothing_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    begun = time.monotonic()
    with pytest.raises(TaskError, match="refused"):
        check_answers(address)
    assert time.monotonic() - begun < 0.3


@pytest.mark.parametrize("address", ["assay.invalid:6379", "127.0.0.1:99999"])
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(TaskError, match="found no cluster") as caught:
        check_answers(address)
    check_grammar(str(caught.value))


def test_an_address_without_a_port_is_left_to_ray() -> None:
    check_answers("auto")
