"""Who may ask the viewer's server: browsers of people who were given its address, and no page else.

The address holds a token, which the first visit turns into a cookie of this server alone. Other
pages in the same browser cannot read what it answers, and what they send is refused; a name that
they make stand for this machine (DNS rebinding) is refused, too.
"""

import hmac
import ipaddress
import secrets

from flask import Flask, Response, abort, redirect, request
from werkzeug.wrappers import Response as AnyResponse

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
REMEMBERED_S = 30 * 86400
LARGEST = 1 << 20
"""Bytes of a request."""
EVERYWHERE = "0.0.0.0"
"""What a server that listens on all addresses of its machine is called."""


def guard(app: Flask, token: str, names: frozenset[str], port: int) -> None:
    """Refuses all requests to `app` but those of people who know the token.

    Args:
        app: The server.
        token: A secret that its address holds.
        names: What the server may be called: hosts, without the port. With `EVERYWHERE` also any
            address in numbers, which no page can make its own.
        port: The port that it listens on.
    """
    cookie, person = f"assay_{port}", f"assay_person_{port}"  # all ports share their cookies
    # Browsers leave out the port that is HTTP's own.
    hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
    app.config["MAX_CONTENT_LENGTH"] = LARGEST

    @app.before_request
    def check() -> AnyResponse | None:
        is_number = EVERYWHERE in names and _is_address(request.host, port)
        if request.host not in hosts and not is_number:
            abort(403, "The server is not called by that name. Open the address it printed.")
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.host}":
            abort(403, "That is the request of another page.")
        site = request.headers.get("Sec-Fetch-Site", "none")
        if site not in ("same-origin", "none") and request.method != "GET":
            abort(403, "That is the request of another page.")
        given = request.args.get("token")
        if request.method == "GET" and given is not None and _is_same(given, token):
            answer = redirect(request.path)
            for name, value, seconds in (
                (cookie, token, None),
                # Who closes the browser and comes back is the same person.
                (person, request.cookies.get(person) or secrets.token_hex(8), REMEMBERED_S),
            ):
                answer.set_cookie(name, value, seconds, httponly=True, samesite="Strict")
            return answer
        if not _is_same(request.cookies.get(cookie, ""), token) or not request.cookies.get(person):
            abort(403, "Open the address that `assay view` printed; it holds a token.")
        if request.method == "POST" and (origin is None or not request.is_json):
            abort(403, "A decision comes from a page of this server.")
        return None

    @app.after_request
    def shut(answer: Response) -> Response:
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        answer.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    app.config["PERSON_COOKIE"] = person


def _is_address(host: str, port: int) -> bool:
    """Whether this is an address in numbers, with the port, or without that of HTTP."""
    name, colon, given = host.partition(":")
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return given == str(port) if colon else port == 80


def _is_same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
