"""Object stores and servers: how they are reached, tried again, and complained about in words.

Each request is tried twice by the client (botocore's mode `standard`), and again by `asked` with
growing pauses, of which it tells: a store that is busy for half a minute stops no run. Variables
such as AWS_MAX_ATTEMPTS and AWS_RETRY_MODE take the place of the client's own tries.

    found by                             becomes
    503, 500, 429, timeouts, resets      tried again, at last a StorageError that names the store
    403, wrong or expired keys           StorageError: the account may not do that
    no credentials                       StorageError: where to put them
    no such bucket                       StorageError: its name
    no such file                         FileNotFoundError, as from a folder

The files of a corpus are read in the same way, and by the same credentials: see `Use`.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.credentials import masked, refuse_secrets
from storage.extras import install_command
from storage.schema import StorageError

LOG = logging.getLogger(__name__)
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
PATIENCE_S = 2.0
"""After which a server that was never reached is given up."""
BUSY_STATUS = (429, 500, 502, 503, 504)
BUSY_CODES = (
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
)
BUSY_ERRORS = (
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseParserError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
)
NO_CREDENTIALS = (
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
)
UNREACHABLE = (
    "ClientConnectorCertificateError",
    "ClientConnectorDNSError",
    "ClientConnectorError",
    "ClientConnectorSSLError",
    "ConnectTimeoutError",
    "ConnectionTimeoutError",
    "EndpointConnectionError",
    "ProxyConnectionError",
)
"""Errors of a server to which there is no connection."""
Result = TypeVar("Result")


class Use(NamedTuple):
    """What files are asked for, in the words of errors, and how patiently."""

    noun: str
    """Stands before the URL."""
    setting: str
    """The key of the YAML."""
    leave: str
    """What the account must be allowed to do."""
    connect_s: int
    """Seconds until a server that does not answer counts as unreachable."""
    tries: int
    """How often the client itself asks S3, before `asked` does so again."""


EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "abfs"),
}
"""The extra of `pyproject.toml` that brings the file system of a protocol."""
STORE = Use("store ", "`store:`", "list, read, write and delete", 10, 2)
SOURCE = Use("", "the path", "list and read", 4, 1)


def open_file_system(url: str, use: Use = STORE) -> tuple[Any, str]:
    """The fsspec file system of a folder or URL, and the path on it.

    Raises:
        StorageError: the URL holds credentials, or no file system is known for its protocol.
    """
    refuse_secrets(url, use.noun.strip() or "path")
    if "://" not in url:
        # A path is a path: fsspec would take one with `::` in it for a chain of file systems.
        return LocalFileSystem(use_listings_cache=False), os.path.abspath(url)
    # A listing that fsspec keeps would hide what other processes write: `Store` keeps its own.
    options: dict[str, Any] = {"use_listings_cache": False}
    is_s3 = url.startswith(("s3://", "s3a://"))
    if is_s3:
        config: dict[str, Any] = {"connect_timeout": use.connect_s, "read_timeout": 60}
        if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
            config["retries"] = {"mode": "standard", "total_max_attempts": use.tries}
        options["config_kwargs"] = config
    elif url.startswith(("http://", "https://")):
        options["client_kwargs"] = _http_options(use)
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(url.partition("://")[0].lower())
        advice = f", or run `{install_command(extra)}`" if extra is not None else ""
        raise StorageError(
            f"{use.noun}{url}: found no file system for it ({error}), expected a folder, s3:// or "
            f"gs://. Correct {use.setting}{advice}."
        ) from error
    if is_s3:
        fs.retries = 1  # s3fs would try again without a word
    return fs, str(root)


def _http_options(use: Use) -> dict[str, Any]:
    """How a client of HTTP behaves: proxies and ~/.netrc count, and a long download is no error."""
    import aiohttp  # `assay --help` should not pay for it.

    return {
        "trust_env": True,
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=use.connect_s, sock_read=60),
        "headers": {"Accept-Encoding": "identity"},  # Ranges of compressed bytes are of no use.
    }


def asked(
    url: str, request: Callable[[], Result], use: Use = STORE, is_first: bool = False
) -> Result:
    """What `request` returns; tried again while the store at `url` is busy or does not answer.

    With `is_first`, a server to which there is no connection is soon given up: the address may be
    wrong.

    Raises:
        FileNotFoundError: the file that is asked for is not there.
        StorageError: the store stays down, refuses, or is not there.
    """
    begun = time.monotonic()
    for number, pause in enumerate((*PAUSES_S, None), 1):
        try:
            return request()
        except StorageError:
            raise
        except Exception as error:
            causes = list(_chain(error))
            reason = _reason(causes)
            is_busy = any(_is_busy(cause) for cause in causes)
            elapsed_s = time.monotonic() - begun
            if is_first and _is_unreachable(causes) and not (is_busy and elapsed_s < PATIENCE_S):
                raise StorageError(
                    f"{use.noun}{url}: found that its server cannot be reached ({reason}), "
                    f"expected an answer. Correct {use.setting} or the server's address (of S3, "
                    "AWS_ENDPOINT_URL), or give the same command again once it is up."
                ) from None
            if not is_busy:
                if isinstance(error, FileNotFoundError) and _is_missing(causes, reason):
                    raise
                raise _refused(f"{use.noun}{url}", causes, reason, use) from None
            if pause is None:
                raise StorageError(
                    f"{use.noun}{url}: found that it did not answer {number} times in "
                    f"{elapsed_s:.0f} s ({reason}), expected a server that takes requests. Give "
                    "the same command again once it is up, which goes on from here; with many "
                    "workers at once, lower `workers` under `ray:`."
                ) from None
            seconds = pause * random.uniform(0.75, 1.25)
            LOG.warning("%s%s is slow (%s): again in %.0f s", use.noun, url, reason, seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _response(error: BaseException) -> tuple[str, int]:
    """Code and HTTP status of a client's error; empty and 0 where it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return str(response.get("Error", {}).get("Code", "")), int(status or 0)
    # Of the hub's client, of one of HTTP, of gcsfs.
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    code = str(status or getattr(error, "code", ""))
    return "", int(code) if code.isdigit() else 0


def _is_missing(causes: list[BaseException], reason: str) -> bool:
    """Whether a FileNotFoundError is one: the client of HTTP calls whatever goes wrong so."""
    statuses = {_response(cause)[1] for cause in causes}
    is_told = statuses <= {0, 404, 410} and "NoSuchBucket" not in reason
    return is_told and not _is_unreachable(causes)


def _is_unreachable(causes: list[BaseException]) -> bool:
    return any(type(cause).__name__ in UNREACHABLE for cause in causes)


def _is_busy(error: BaseException) -> bool:
    code, status = _response(error)
    is_network = isinstance(error, TimeoutError | ConnectionError)
    name = type(error).__name__
    return is_network or name in BUSY_ERRORS or code in BUSY_CODES or status in BUSY_STATUS


def _reason(causes: list[BaseException]) -> str:
    """The most telling of the errors in a few words, without secrets."""
    for cause in causes:
        code, status = _response(cause)
        if code or status:
            return " ".join(dict.fromkeys(part for part in (str(status or ""), code) if part))
    chosen = next((cause for cause in causes if _is_unreachable([cause])), causes[0])
    return masked(f"{type(chosen).__name__}: {' '.join(str(chosen).split())}"[:300])


def _refused(name: str, causes: list[BaseException], reason: str, use: Use) -> StorageError:
    """The error of a request that it is no use to try again; `name` begins it."""
    names = {type(cause).__name__ for cause in causes}
    statuses = {_response(cause)[1] for cause in causes}
    if names & set(NO_CREDENTIALS):
        return StorageError(
            f"{name}: found no credentials ({reason}), expected those of an account that "
            "may use it. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, for "
            "gs:// GOOGLE_APPLICATION_CREDENTIALS."
        )
    if "NoSuchBucket" in reason:
        return StorageError(
            f"{name}: found no such bucket, expected one that exists. Correct {use.setting}, or "
            "make the bucket."
        )
    if 412 in statuses:
        return StorageError(
            f"{name}: found another file than when it was opened, expected the same one until it "
            "is read. Give the same command again once nobody writes to it."
        )
    if "PermissionError" in names or statuses & {401, 403}:
        return StorageError(
            f"{name}: found that this account may not use it ({reason}), expected leave to "
            f"{use.leave} there. Correct the credentials, or the bucket's policy."
        )
    return StorageError(
        f"{name}: found that a request failed ({reason}), expected an answer. Check the "
        "address and the credentials, and give the same command again."
    )
