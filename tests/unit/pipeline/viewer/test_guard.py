import pytest
from flask import Flask

from pipeline.viewer.guard import guard

TOKEN = {"token": "secret"}


def status(host: str, names: frozenset[str], port: int) -> int:
    """How a server of these names answers who knows the token and calls it `host`."""
    app = Flask("test")
    guard(app, "secret", names, port)
    return app.test_client().get("/", query_string=TOKEN, headers={"Host": host}).status_code


@pytest.mark.parametrize(
    ("host", "port", "is_let_in"),
    [
        ("127.0.0.1:8000", 8000, True),
        ("192.168.1.5:8000", 8000, True),
        ("192.168.1.5", 80, True),
        ("192.168.1.5", 8000, False),
        ("192.168.1.5:8001", 8000, False),
        ("192.168.1.5.evil.example:8000", 8000, False),
        ("evil.example:8000", 8000, False),
        ("192.168.1.5:8000:8000", 8000, False),
    ],
)
def test_a_server_of_all_addresses_is_called_by_any(host: str, port: int, is_let_in: bool) -> None:
    assert status(host, frozenset({"0.0.0.0", "127.0.0.1"}), port) == (302 if is_let_in else 403)


@pytest.mark.parametrize("names", [{"127.0.0.1", "localhost"}, {"192.168.1.4", "127.0.0.1"}])
def test_a_server_of_one_address_is_called_by_that_alone(names: set[str]) -> None:
    assert status("192.168.1.5:8000", frozenset(names), 8000) == 403
    assert status("127.0.0.1:8000", frozenset(names), 8000) == 302
