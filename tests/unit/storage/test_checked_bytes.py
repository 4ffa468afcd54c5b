"""Bytes that are read are those that were written: shards, manifests, notes and maps."""

import contextlib
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.damage import Claim, Damage, Examination
from storage.feature_map import BLOCK, map_fault, map_place, open_map
from storage.manifest import Manifest
from storage.schema import CorruptError, FileError, MissingError, TableSpec
from storage.shard_file import encode, has_valid_seal
from storage.table import Store

KEYS = [f"{at:016x}" for at in range(8)]
SPEC = TableSpec("t", pa.schema([("id", pa.int64()), ("x", pa.float64())]), ("id",))
VECTOR = TableSpec(
    "v", pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32()))]), ("id",)
)
FLIPS = 60


def rows(start: int = 0, n: int = 5) -> pa.Table:
    ids = range(start, start + n)
    return pa.table({"id": pa.array(ids, pa.int64()), "x": [i / 3 for i in ids]})


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def bits(data: bytes, seed: int) -> list[int]:
    return random.Random(seed).sample(range(8 * len(data)), FLIPS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def written(store: Store, n: int = 2) -> Manifest:
    """A table of `n` shards, and its manifest, in the store."""
    shards = [
        store.write_shard(SPEC, KEYS[i], "example", i, rows(10 * i), {"fact": i}) for i in range(n)
    ]
    manifest = Manifest("t", "s", 1, {"a": 1}, {"text": "00"}, tuple(shards), {"ridge": 0.5})
    store.write_manifest(manifest)
    return manifest


def test_no_flipped_bit_of_a_shard_is_read_by_its_seal_or_its_record(store: Store) -> None:
    (record,) = written(store, 1).shards
    path = Path(store.path("t", f"{KEYS[0]}.parquet"))
    data = path.read_bytes()
    for bit in bits(data, 0):
        path.write_bytes(flipped(data, bit))
        for listed in (None, record):
            with pytest.raises(CorruptError) as caught:
                store.read_shard("t", KEYS[0], listed=listed)
            assert caught.value.file == ("t", f"{KEYS[0]}.parquet")
    path.write_bytes(data)
    assert store.read_shard("t", KEYS[0]).equals(rows())


def test_no_flipped_bit_of_a_manifest_is_read(store: Store) -> None:
    manifest = written(store)
    path = Path(store.path("t", f"{manifest.key}.json"))
    data = path.read_bytes()
    n_refused = 0
    for bit in bits(data, 1):
        path.write_bytes(flipped(data, bit))
        with contextlib.suppress(CorruptError):
            # What is read in spite of a flip differs in white space alone.
            assert Store(store.url).read_manifest("t", manifest.key) == manifest
            continue
        n_refused += 1
    assert n_refused > FLIPS / 2


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_shard_that_was_cut_is_not_read(store: Store, cut: int) -> None:
    written(store)
    path = Path(store.path("t", f"{KEYS[0]}.parquet"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptError, match="expected the whole shard as it was written"):
        store.read_shard("t", KEYS[0])


def test_a_whole_shard_under_the_name_of_another_is_not_read(store: Store) -> None:
    manifest = written(store)
    first, second = (Path(store.path("t", f"{KEYS[i]}.parquet")) for i in range(2))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    for shard in manifest.shards:
        for listed in (None, shard):
            with pytest.raises(CorruptError):
                store.read_shard("t", shard.key, listed=listed)
    with pytest.raises(CorruptError):
        store.read_table(manifest)


def test_a_seal_is_of_one_table_and_key() -> None:
    _, data = encode(SPEC, "k", rows(), None)
    assert has_valid_seal(data, "t", "k")
    assert not has_valid_seal(data, "t", "j")
    assert not has_valid_seal(data, "u", "k")


def test_a_shard_without_a_seal_is_read_where_a_manifest_lists_its_bytes(store: Store) -> None:
    """Shards of before there were seals stay good; one that nobody vouches for does not."""
    manifest = written(store, 1)
    path = Path(store.path("t", f"{KEYS[0]}.parquet"))
    pq.write_table(rows(), path)
    with pytest.raises(CorruptError, match="is not the one in its manifest|bytes"):
        store.read_shard("t", KEYS[0])
    data = path.read_bytes()
    from hashlib import sha256

    old = replace(manifest.shards[0], bytes=len(data), sha256=sha256(data).hexdigest())
    store.write_manifest(replace(manifest, shards=(old,)), replaces=True)
    again = Store(store.url)
    assert again.read_shard("t", KEYS[0]).equals(rows())
    Path(store.path("t", f"{manifest.key}.json")).unlink()
    with pytest.raises(CorruptError, match="without a seal, which no manifest lists"):
        Store(store.url).read_shard("t", KEYS[0])


def test_a_manifest_without_a_seal_is_read(store: Store) -> None:
    manifest = written(store)
    path = Path(store.path("t", f"{manifest.key}.json"))
    raw = json.loads(path.read_text())
    del raw["seal"]
    path.write_text(json.dumps(raw))
    assert Store(store.url).read_manifest("t", manifest.key) == manifest


def test_a_manifest_of_other_shards_is_not_read(store: Store) -> None:
    manifest = written(store)
    other = replace(manifest, shards=manifest.shards[:1])
    Path(store.path("t", f"{manifest.key}.json")).write_text(other.to_json())
    with pytest.raises(CorruptError, match="found the manifest t"):
        Store(store.url).read_manifest("t", manifest.key)


def test_a_note_is_checked(store: Store) -> None:
    store.write_note("ingest", "n", {"text": "00"})
    assert store.read_note("ingest", "n") == {"text": "00"}
    assert store.read_note("ingest", "other") is None
    path = Path(store.path("ingest", "n.json"))
    path.write_text(path.read_text().replace('"00"', '"01"'))
    with pytest.raises(CorruptError, match="other content than was written"):
        store.read_note("ingest", "n")


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes(), 77))


@pytest.mark.parametrize(
    ("harm", "what", "by_size"),
    [
        (remove, "gone", True),
        (empty, "0 bytes, ", True),
        (shorten, "were written", True),
        (flip, "other bytes than were written", False),
    ],
)
def test_damage_is_found_by_size_or_by_hash(
    store: Store, harm: Callable[[Path], None], what: str, by_size: bool
) -> None:
    manifest = written(store)
    harm(Path(store.path("t", f"{KEYS[1]}.parquet")))
    claim = Claim("t", manifest.key, (KEYS[0], KEYS[1]))
    (found,) = Examination(store).of(claim)
    assert (found.table, found.name) == ("t", f"{KEYS[1]}.parquet")
    assert what in found.what
    assert bool(Examination(store, 0).of(claim)) == by_size


def test_a_manifest_that_lists_other_bytes_than_a_whole_shard_has_is_what_is_damaged(
    store: Store,
) -> None:
    manifest = written(store)
    store.write_shard(SPEC, KEYS[1], "example", 1, rows(50))
    claim = Claim("t", manifest.key, (KEYS[0], KEYS[1]))
    name = f"{manifest.key}.json"
    assert Examination(store).of(claim) == [
        Damage("t", name, f"lists other bytes than {KEYS[1]}.parquet has")
    ]


def test_a_file_that_is_gone_says_so(store: Store) -> None:
    with pytest.raises(MissingError) as caught:
        store.read_shard("t", KEYS[0])
    assert caught.value.file == ("t", f"{KEYS[0]}.parquet")
    with pytest.raises(MissingError):
        store.read_manifest("t", KEYS[0])


@pytest.mark.parametrize("kind", [CorruptError, MissingError])
def test_errors_of_files_come_back_from_other_processes(kind: type[FileError]) -> None:
    error = pickle.loads(pickle.dumps(kind("found nothing", ("t", "k.json"))))
    assert type(error) is kind
    assert (str(error), error.file) == ("found nothing", ("t", "k.json"))


def test_damaged_manifests_are_left_out_with_a_word(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = written(store), written(store, 1)
    Path(store.path("t", f"{broken.key}.json")).write_text("")
    assert list(Store(store.url).earlier_manifests("t")) == [whole]
    assert f"{broken.key}.json: found" in caplog.text


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> Manifest:
    """A table of vectors of more than one block, the map of which lies in a folder of its own."""
    monkeypatch.setenv("ASSAY_MAPS", str(tmp_path / "maps"))
    n, dim = 300, 2048
    numbers = np.random.default_rng(0).normal(size=n * dim).astype(np.float32)
    cells = pa.FixedSizeListArray.from_arrays(pa.array(numbers), dim)
    table = pa.table({"id": pa.array(range(n), pa.int64()), "vector": cells})
    shards = [
        store.write_shard(VECTOR, KEYS[i], "example", i, table.slice(150 * i, 150))
        for i in range(2)
    ]
    return Manifest("v", "s", 1, {}, {}, tuple(shards))


def zero(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[BLOCK + 5 : BLOCK + 4000] = bytes(3995)
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [remove, empty, shorten, flip, zero])
def test_a_damaged_map_is_told_of_and_built_again(
    features: Manifest,
    store: Store,
    harm: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids, vectors = (array.copy() for array in open_map(store, features, "example"))
    place = map_place(features, "example")
    assert map_fault(place) is None
    harm(place / "vectors.npy")
    assert map_fault(place) is not None
    again = open_map(store, features, "example")
    np.testing.assert_array_equal(again[0], ids)
    np.testing.assert_array_equal(again[1], vectors)
    assert "the map is built again" in caplog.text
    assert map_fault(place) is None


@pytest.mark.parametrize("name", ["ids.npy", "vectors.npy", "sums.json"])
def test_no_flipped_bit_of_a_map_is_computed_with(
    features: Manifest, store: Store, name: str
) -> None:
    whole = [array.copy() for array in open_map(store, features, "example")]
    path = map_place(features, "example") / name
    data = path.read_bytes()
    for bit in bits(data, 2)[:5]:
        path.write_bytes(flipped(data, bit))
        for found, right in zip(open_map(store, features, "example"), whole, strict=True):
            np.testing.assert_array_equal(found, right)


def test_a_map_is_not_built_from_a_damaged_shard(features: Manifest, store: Store) -> None:
    flip(Path(store.path("v", f"{KEYS[1]}.parquet")))
    with pytest.raises(FileError):
        open_map(store, features, "example")
    assert not map_place(features, "example").exists()
