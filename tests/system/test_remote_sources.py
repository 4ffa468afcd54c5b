"""Runs over rows that lie at URLs: in S3, moto's on this machine, and on web servers."""

import datetime
import functools
import http.server
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import forget_clients
from runs import check_grammar, tables_of, write_lines, write_run

BUCKET = "rows"
N_FILES = 1000
CORPUS = ("text", "label", "extra", "features")


@pytest.fixture(scope="module")
def bucket(s3: None) -> Any:
    import boto3

    bucket = boto3.resource("s3").Bucket(BUCKET)
    bucket.create()
    return bucket


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often this process asks S3 for something of the corpus, by method."""
    from aiobotocore.httpsession import AIOHTTPSession

    sent: Counter[str] = Counter()
    send = AIOHTTPSession.send

    async def counted(self: Any, request: Any) -> Any:
        if "/store" not in request.url and "store" not in request.url.partition("prefix=")[2]:
            sent["LIST" if "list-type" in request.url else request.method] += 1
        return await send(self, request)

    monkeypatch.setattr(AIOHTTPSession, "send", counted)
    return sent


def written(folder: Path, n_files: int = N_FILES) -> list[Path]:
    """A corpus of files of three rows each, with vectors."""
    (folder / "rows").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n_files):
        vectors = rng.normal(size=(3, 4)).tolist()
        rows = [
            {"id": 3 * i + j, "text": f"{i} {j}", "label": "abc"[j], "v": vectors[j]}
            for j in range(3)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"rows/{i:04}.jsonl").write_text(
            lines + ("{broken\n" if i == n_files // 2 else "")
        )
    return sorted((folder / "rows").iterdir())


def config(folder: Path, root: str, **changes: Any) -> Path:
    source = {"path": f"{root}/rows/*.jsonl", "id": "id", "features": "v"}
    stages = {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}}
    return write_run(folder, corpus=source, stages=stages, shard_size=1000, **changes)


@pytest.mark.slow
def test_a_corpus_in_s3_is_that_on_disk_and_costs_a_listing_when_unchanged(
    bucket: Any, requests: Counter[str], assay: Any, tmp_path: Path
) -> None:
    for file in written(tmp_path):
        bucket.upload_file(str(file), f"set/{file.relative_to(tmp_path)}")
    assay("run", config(tmp_path / "local", str(tmp_path)))
    requests.clear()
    given = config(tmp_path / "remote", f"s3://{BUCKET}/set", store=f"s3://{BUCKET}/store")
    assay("run", given)
    # One request for each file, however often it is opened.
    assert requests["GET"] == N_FILES, requests
    assert requests.total() - requests["GET"] <= 16, requests
    names = {o.key.removeprefix("store/") for o in bucket.objects.filter(Prefix="store/")}
    local = tables_of(tmp_path / "local/run/store")
    shards = {n for n in local if n.endswith(".parquet") and n.partition("/")[0] in CORPUS}
    assert len(shards) == 12
    assert shards <= names
    requests.clear()
    planned = json.loads(assay("plan", given, "--json").stdout)["stages"]
    assert all(row["tasks"] == 0 for row in planned)
    assert "0 tasks to do" in " ".join(assay("run", given).stderr.split())
    assert requests["GET"] == 0, requests
    assert requests.total() <= 16, requests
    # One more file: the rows of the others keep their shards.
    one = b'{"id": 9000, "text": "x", "label": "a", "v": [1.0, 2.0, 3.0, 4.0]}\n'
    bucket.put_object(Key="set/rows/1000.jsonl", Body=one)
    assay("run", given)
    again = {o.key.removeprefix("store/") for o in bucket.objects.filter(Prefix="store/")}
    assert sum(n.startswith("text/") and n.endswith(".parquet") for n in again - names) == 1


@pytest.mark.ray
@pytest.mark.slow
def test_workers_read_their_parts_from_s3(bucket: Any, cli: Any, tmp_path: Path) -> None:
    """By the driver's environment, and to the same shards as one process from disk."""
    files = written(tmp_path, 8)
    for file in files:
        bucket.upload_file(str(file), f"few/{file.relative_to(tmp_path)}")
    stores = []
    for name, root, engine in (
        ("local", str(tmp_path), "in_process"),
        ("remote", f"s3://{BUCKET}/few", "ray"),
    ):
        given = config(tmp_path / name, root, ray={"engine": engine})
        done = cli("run", given, RAY_USAGE_STATS_ENABLED="0")
        assert done.returncode == 0, done.stderr
        stores.append(tables_of(tmp_path / name / "run/store"))
    shards = [
        {n: v for n, v in store.items() if n.endswith(".parquet") and not n.startswith("rejected")}
        for store in stores
    ]
    assert len(shards[0]) >= 6
    assert shards[0] == shards[1]


@pytest.mark.slow
def test_a_host_that_never_answers(
    s3: None, complaint: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as deaf, socket.socket() as first:
        # A queue of one connection that nobody takes: further ones hang, as behind a firewall.
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        first.connect(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_clients()
        for root in (url, f"s3://{BUCKET}"):
            given = config(tmp_path / root[:2], root)
            path = "a.jsonl" if root == url else "rows/*.jsonl"
            begun = time.monotonic()
            said = complaint("plan", given, "--set", f"corpus.path={root}/{path}")
            assert time.monotonic() - begun < 10
            assert "found that its server cannot be reached" in said
    forget_clients()


class _Guarded(http.server.SimpleHTTPRequestHandler):
    """Gives files to those who have the password."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") is None:
            self.send_error(401)
        else:
            super().do_GET()

    do_HEAD = do_GET  # type: ignore[assignment]


def certificate(folder: Path) -> str:
    """The path of a certificate of 127.0.0.1 with its key, which nobody has signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "certificate.pem"
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM) + private)
    return str(path)


def test_a_corpus_behind_https_and_a_password(cli: Any, tmp_path: Path) -> None:
    """The password is in ~/.netrc; a certificate that is not known is refused."""
    rows = [{"id": i, "text": f"row {i}", "label": "ab"[i % 2], "v": [i, 1]} for i in range(20)]
    served = tmp_path / "served"
    served.mkdir()
    write_lines(served / "rows.jsonl", rows)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password hidden\n")
    path = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    handler = functools.partial(_Guarded, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"https://127.0.0.1:{server.server_port}"
        source = {"path": f"{url}/rows.jsonl", "id": "id", "features": "v"}
        stages = {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}}
        given = write_run(tmp_path, corpus=source, stages=stages)
        known = {"SSL_CERT_FILE": path}
        stranger = cli("run", given)
        nobody = cli("run", given, **known)
        friend = cli("run", given, **known, NETRC=str(netrc))
        server.shutdown()
        thread.join()
    assert "certificate" in stranger.stderr.lower()
    check_grammar(" ".join(stranger.stderr.split()))
    assert "may not use it (401), expected leave to list and read" in " ".join(
        nobody.stderr.split()
    )
    assert friend.returncode == 0, friend.stderr
    assert (stranger.returncode, nobody.returncode) == (1, 1)
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not any(b"hidden" in p.read_bytes() for p in files)
    here = {**source, "path": str(served / "rows.jsonl")}
    assert cli("run", write_run(tmp_path / "here", corpus=here, stages=stages)).returncode == 0
    own, local = (tables_of(tmp_path / f / "store") for f in ("run", "here/run"))
    shards = {n for n in own if n.endswith(".parquet") and n.partition("/")[0] in CORPUS}
    assert len(shards) == 4
    assert shards <= set(local)
