"""Object stores: how they are reached, tried again, and complained about in words.

Each request is tried twice by the client (botocore's mode `standard`), and again by `asked` with
growing pauses, of which it tells: a store that is busy for half a minute stops no run. Variables
such as AWS_MAX_ATTEMPTS and AWS_RETRY_MODE take the place of the client's own tries.

    found by                             becomes
    503, 500, 429, timeouts, resets      tried again, at last a StorageError that names the store
    403, wrong or expired keys           StorageError: the account may not do that
    no credentials                       StorageError: where to put them
    no such bucket                       StorageError: its name
    no such file                         FileNotFoundError, as from a folder
"""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.credentials import masked, refuse_secrets
from storage.schema import StorageError

LOG = logging.getLogger(__name__)
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
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
Result = TypeVar("Result")


def open_file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a folder or URL, and the path on it.

    Raises:
        StorageError: the URL holds credentials, or no file system is known for its protocol.
    """
    refuse_secrets(url, "store")
    if "://" not in url:
        # A path is a path: fsspec would take one with `::` in it for a chain of file systems.
        return LocalFileSystem(use_listings_cache=False), os.path.abspath(url)
    # A listing that fsspec keeps would hide what other processes write: `Store` keeps its own.
    options: dict[str, Any] = {"use_listings_cache": False}
    is_s3 = url.startswith(("s3://", "s3a://"))
    if is_s3:
        config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 60}
        if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
            config["retries"] = {"mode": "standard", "total_max_attempts": 2}
        options["config_kwargs"] = config
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"store {url}: found no file system for it ({error}), expected a folder, s3:// or "
            "gs://. Correct `store:`, or install the extra (pip install -e '.[s3]' or '.[gs]')."
        ) from error
    if is_s3:
        fs.retries = 1  # s3fs would try again without a word
    return fs, str(root)


def asked(store: str, request: Callable[[], Result]) -> Result:
    """What `request` returns; tried again while the store `store` is busy or does not answer.

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
            if not any(_is_busy(cause) for cause in causes):
                if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in reason:
                    raise
                raise _refused(store, causes, reason) from None
            if pause is None:
                raise StorageError(
                    f"store {store}: found that it did not answer {number} times in "
                    f"{time.monotonic() - begun:.0f} s ({reason}), expected an object store that "
                    "takes requests. Give the same command again once it is up, which goes on "
                    "from here; with many workers at once, lower `workers` under `ray:`."
                ) from None
            seconds = pause * random.uniform(0.75, 1.25)
            LOG.warning("store %s is slow (%s): again in %.0f s", store, reason, seconds)
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
    code = str(getattr(error, "code", ""))
    return "", int(code) if code.isdigit() else 0


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
    first = " ".join(str(causes[0]).split())
    return masked(f"{type(causes[0]).__name__}: {first}"[:300])


def _refused(store: str, causes: list[BaseException], reason: str) -> StorageError:
    """The error of a request that it is no use to try again."""
    names = {type(cause).__name__ for cause in causes}
    statuses = {_response(cause)[1] for cause in causes}
    if names & set(NO_CREDENTIALS):
        return StorageError(
            f"store {store}: found no credentials ({reason}), expected those of an account that "
            "may use it. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, for "
            "gs:// GOOGLE_APPLICATION_CREDENTIALS."
        )
    if "NoSuchBucket" in reason:
        return StorageError(
            f"store {store}: found no such bucket, expected one that exists. Correct `store:`, or "
            "make the bucket."
        )
    if "PermissionError" in names or statuses & {401, 403}:
        return StorageError(
            f"store {store}: found that this account may not use it ({reason}), expected leave to "
            "list, read, write and delete there. Correct the credentials, or the bucket's policy."
        )
    return StorageError(
        f"store {store}: found that a request failed ({reason}), expected an answer. Check the "
        "address and the credentials, and give the same command again."
    )
