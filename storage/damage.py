"""What is wrong with the files of a table: by sizes, from one listing, or by every byte."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from storage.manifest import HEALS, Manifest, ShardRecord
from storage.schema import CorruptError, FileError, MissingError, StorageError
from storage.table import Store


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not what was written, or is gone."""

    table: str
    name: str
    what: str
    """What was found, such as `10 bytes, 300 were written`."""

    def __str__(self) -> str:
        return f"{self.table}/{self.name}: {self.what}"


@dataclass(frozen=True)
class Claim:
    """The files that a run says that it has of a table."""

    table: str
    manifest: str | None
    """Key of the manifest; None where the table is not whole."""
    shards: tuple[str, ...]
    """Keys of all shards, also of those that the manifest does not list."""


class DamagedFiles(StorageError):
    """Files of a store are damaged or gone, `damages`: all that a look at them found."""

    def __init__(self, damages: Sequence[Damage]):
        listed = "; ".join(map(str, damages))
        super().__init__(
            f"found damaged files ({listed}), expected them as they were written. {HEALS}"
        )
        self.damages = tuple(damages)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.damages,)


class Examination:
    """Looks at the files of claims, hashes as many bytes as it may, and finds what is wrong."""

    def __init__(
        self,
        store: Store,
        most_bytes: int | None = None,
        stepped: Callable[[], None] | None = None,
    ):
        """Looks at nothing yet.

        Args:
            store: Holds the files; its listing tells their sizes.
            most_bytes: How much is hashed; 0 compares sizes alone, None hashes all.
            stepped: Called for each shard that was looked at.
        """
        self._store, self._left, self._stepped = store, most_bytes, stepped

    def of(self, claim: Claim) -> list[Damage]:
        """What is wrong with the files of a claim.

        A shard that is gone is damage where the manifest lists it, and else one that is not there
        yet. Where a whole shard is not the one that the manifest lists, the manifest is wrong.
        """
        table, sizes = claim.table, self._store.sizes(claim.table)
        found, listed = self._manifest(claim, sizes)
        for key in dict.fromkeys([*listed, *claim.shards]):
            name, record = f"{key}.parquet", listed.get(key)
            size = sizes.get(name)
            if size is None:
                found += [Damage(table, name, "gone")] if record is not None else []
            elif record is not None and size != record.bytes:
                found.append(self._judged(claim, key, f"{size} bytes, {record.bytes} were written"))
            elif size == 0:
                found.append(Damage(table, name, "an empty file"))
            elif self._may_hash(size):
                try:
                    self._store.check_shard(table, key, record)
                except MissingError:
                    found.append(Damage(table, name, "gone"))
                except CorruptError:
                    found.append(self._judged(claim, key, "other bytes than were written"))
            if self._stepped is not None:
                self._stepped()
        return list(dict.fromkeys(found))

    def _manifest(
        self, claim: Claim, sizes: Collection[str]
    ) -> tuple[list[Damage], dict[str, ShardRecord]]:
        """What is wrong with the manifest, and the shards that it lists."""
        if claim.manifest is None or f"{claim.manifest}.json" not in sizes:
            return [], {}
        try:
            manifest: Manifest = self._store.read_manifest(claim.table, claim.manifest)
        except FileError as error:
            if error.file is None:
                raise
            what = "gone" if isinstance(error, MissingError) else "other content than was written"
            return [Damage(*error.file, what)], {}
        return [], {shard.key: shard for shard in manifest.shards}

    def _judged(self, claim: Claim, key: str, what: str) -> Damage:
        """The damage of a shard that is not as listed, or of the manifest where it is whole."""
        if claim.manifest is not None and self._store.is_whole(claim.table, key):
            return Damage(
                claim.table, f"{claim.manifest}.json", f"lists other bytes than {key}.parquet has"
            )
        return Damage(claim.table, f"{key}.parquet", what)

    def _may_hash(self, size: int) -> bool:
        if self._left is None:
            return True
        self._left -= size
        return self._left >= 0
