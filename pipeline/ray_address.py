"""Whether a Ray cluster answers at an address: Ray itself tries for minutes, and then exits."""

import os
import socket

from pipeline.errors import TaskError

PATIENCE_S = 5.0
# What every gRPC client begins with: the preface of HTTP/2 and an empty frame of settings. A server
# answers with a frame of its own, whose fourth byte, its kind, is 4 (RFC 9113, 3.4 and 6.5).
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4


def check_answers(address: str) -> None:
    """Raises unless something at `address` talks as a Ray cluster does; within about ten seconds.

    An address without a port, such as `auto`, is Ray's to understand.

    Raises:
        TaskError: nothing listens there, the host is not known or does not answer, or what answers
            is no Ray.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return  # the greeting comes after a handshake that needs certificates
            connection.sendall(GREETING)
            answer = connection.recv(9)
    except TimeoutError:
        found = f"no answer within {PATIENCE_S:g} s"
    except (OSError, OverflowError) as error:  # also of the look-up of the host's name
        found = str(getattr(error, "strerror", None) or error)
    else:
        if len(answer) > 3 and answer[3] == SETTINGS:
            return
        found = "something else that listens there"
    raise TaskError(
        f"ray: found no cluster at {address} ({found}), expected one to connect to. Check the "
        "address (`ray status` on the cluster's first node tells it), or leave it out to start Ray "
        "on this machine."
    )
