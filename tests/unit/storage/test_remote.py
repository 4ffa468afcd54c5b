"""Object stores: what is tried again, what is said, and what is never shown."""

from typing import Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError
from runs import check_grammar

from storage import remote
from storage.credentials import masked, refuse_secrets
from storage.remote import SOURCE, asked
from storage.schema import StorageError


def answer(status: int, code: str) -> ClientError:
    metadata: Any = {"HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "GetObject")


def translated(error: Exception, cause: Exception) -> Exception:
    """An error as s3fs raises it: one of Python's, from one of botocore's."""
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, in no time."""
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    return waited


class Flaky:
    """A request that fails some times, and then answers."""

    def __init__(self, error: Exception, times: int):
        self.error, self.left, self.asked = error, times, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "answer"


BUSY = [
    translated(OSError(16, "Please reduce your request rate."), answer(503, "SlowDown")),
    answer(500, "InternalError"),
    answer(429, "TooManyRequests"),
    ReadTimeoutError(endpoint_url="http://store"),
    ConnectionResetError("reset"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", BUSY, ids=lambda e: type(e).__name__)
def test_a_busy_store_is_asked_again_with_growing_pauses_and_that_is_told(
    error: Exception, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    request = Flaky(error, 3)
    assert asked("s3://b/s", request) == "answer"
    assert request.asked == 4
    assert pauses == sorted(pauses)
    assert len(pauses) == 3
    assert caplog.text.count("store s3://b/s is slow") == 3


def test_a_store_that_stays_down_is_named(pauses: list[float]) -> None:
    request = Flaky(answer(503, "SlowDown"), 100)
    with pytest.raises(StorageError, match="store s3://b/s: found that it did not answer") as error:
        asked("s3://b/s", request)
    check_grammar(str(error.value))
    assert "503 SlowDown" in str(error.value)
    assert request.asked == len(pauses) + 1
    assert 20 < sum(pauses) < 60


@pytest.mark.parametrize(
    ("error", "fragments"),
    [
        (NoCredentialsError(), ["found no credentials", "AWS_ACCESS_KEY_ID"]),
        (translated(PermissionError("no"), answer(403, "AccessDenied")), ["may not use it", "403"]),
        (answer(403, "ExpiredToken"), ["may not use it", "ExpiredToken"]),
        (
            translated(FileNotFoundError("no"), answer(404, "NoSuchBucket")),
            ["found no such bucket", "Correct `store:`"],
        ),
        (OSError("odd ?X-Amz-Signature=abc123&x=1"), ["a request failed", "X-Amz-Signature=***"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_no_use_to_try_again_is_said_in_words(
    error: Exception, fragments: list[str], pauses: list[float]
) -> None:
    with pytest.raises(StorageError) as raised:
        asked("s3://b/s", Flaky(error, 1))
    check_grammar(str(raised.value))
    for fragment in ["store s3://b/s", *fragments]:
        assert fragment in str(raised.value)
    assert "abc123" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    assert pauses == []


class EndpointConnectionError(Exception):
    """As botocore calls it."""


class ClientConnectorDNSError(OSError):
    """As aiohttp calls it."""


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (EndpointConnectionError("http://s3: refused"), 3),
        (translated(FileNotFoundError("x"), ClientConnectorDNSError("http://s3: no such name")), 1),
    ],
)
def test_a_server_that_was_never_reached_is_soon_given_up(
    error: Exception, tries: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a wrong address; once it has answered, it is waited for."""
    monkeypatch.setattr(remote.time, "monotonic", lambda: sum(pauses))
    request = Flaky(error, 100)
    with pytest.raises(StorageError, match=r"found that its server cannot be .*s3: ") as e:
        asked("s3://b/s", request, SOURCE, is_first=True)
    check_grammar(str(e.value))
    assert str(e.value).startswith("s3://b/s: ")
    assert request.asked == tries
    assert sum(pauses) < 5
    if tries > 1:
        request = Flaky(error, 4)
        assert asked("s3://b/s", request, SOURCE) == "answer"


class ClientResponseError(Exception):
    """As aiohttp calls it."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status

    @property
    def code(self) -> int:
        """Not to be read any more."""
        raise DeprecationWarning("code")


@pytest.mark.parametrize(
    ("status", "found"),
    [(403, "may not use it (403)"), (412, "found another file"), (418, "a request failed (418)")],
)
def test_a_client_of_http_that_calls_all_errors_missing_files(status: int, found: str) -> None:
    error = translated(FileNotFoundError("x"), ClientResponseError(status))
    with pytest.raises(StorageError) as raised:
        asked("https://h/f.csv", Flaky(error, 1), SOURCE)
    check_grammar(str(raised.value))
    assert found in str(raised.value)
    missing = translated(FileNotFoundError("x"), ClientResponseError(404))
    with pytest.raises(FileNotFoundError):
        asked("https://h/f.csv", Flaky(missing, 1), SOURCE)
    busy = Flaky(translated(FileNotFoundError("x"), ClientResponseError(503)), 3)
    assert asked("https://h/f.csv", busy, SOURCE) == "answer"


def test_a_file_that_is_not_there_is_just_that() -> None:
    with pytest.raises(FileNotFoundError):
        asked("s3://b/s", Flaky(translated(FileNotFoundError("x"), answer(404, "NoSuchKey")), 1))


SECRET = [
    "s3://KEY:hidden@bucket/store",
    "s3://bucket/store?X-Amz-Credential=K&X-Amz-Signature=hidden",
    "https://bucket.s3.amazonaws.com/x?AWSAccessKeyId=K&Signature=hidden&Expires=1",
    "gs://bucket/x?access_token=hidden",
]


@pytest.mark.parametrize("url", SECRET)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StorageError, match="store: found credentials in") as error:
        refuse_secrets(url, "store")
    check_grammar(str(error.value))
    assert "hidden" not in str(error.value)
    assert "hidden" not in masked(f"failed at {url}: no answer")


@pytest.mark.parametrize("url", ["s3://bucket/store", "/a/folder", "C:/x@y", "hf://user/set@v1"])
def test_urls_without_credentials_are_left_alone(url: str) -> None:
    refuse_secrets(url, "store")
    assert masked(url) == url
