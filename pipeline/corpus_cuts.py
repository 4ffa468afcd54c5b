"""How a corpus that is read again is cut: as in the earlier reading of which most can be reused."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.corpus_shards import Making, groups_of, make_shards
from stages.corpus import ingest
from stages.corpus.ingest import Survey
from stages.corpus.pieces import Each, in_order
from storage.manifest import Manifest, ShardRecord
from storage.schema import FileError
from storage.shards import cut, remaining
from storage.table import Store

LOG = logging.getLogger(__name__)
EARLIER_CUTS = 20
"""Earlier readings of a corpus whose cuts into shards are tried."""
SAMPLE = 8
"""Shards that are compared first: where none is the same, the others are taken for others, too."""
_SHARDS_AT_ONCE = 64
_ROWS_AT_ONCE = 1 << 20
TEXT = ingest.TEXT.name


class Cut(NamedTuple):
    """The rows of every shard, by their numbers in the source, and what is known of the shards."""

    shards: list[np.ndarray]
    known: Mapping[int, ShardRecord] = {}
    """Shards of `text` that lie in the store with the same rows, by index."""
    earlier: Manifest | None = None
    """The reading whose cut is kept; None where the corpus is cut afresh."""


def cut_afresh(survey: Survey, shard_size: int) -> Cut:
    """The kept rows in their order, in shards of one size, the last one shorter."""
    kept = _kept(survey)
    return Cut([kept[start : start + shard_size] for start in range(0, len(kept), shard_size)])


def cut_as_before(survey: Survey, before: Sequence[np.ndarray], shard_size: int) -> Cut:
    """The rows in the shards where they were, by the ids of these, and new rows in new ones."""
    kept, ids = _kept(survey), _kept_ids(survey)
    return Cut([kept[places] for places in cut(ids, before, shard_size)])


def best_cut(
    survey: Survey,
    making: Making,
    store: Store,
    each: Each,
    shard_size: int,
    fits: Callable[[Manifest], bool],
) -> Cut:
    """The cut of the earlier reading, among those that `fits` allows, with most rows in common.

    A shard counts where its texts are the same, which is compared by their hash. Where none counts,
    the corpus is cut afresh in shards of `shard_size`; else they are of the size that they had.
    """
    role = making.recipe.columns.role
    n_kept = int((survey.reasons == 0).sum())
    looks = _Looks(survey, making, store, each)
    most, best = 0, None
    for manifest in store.earlier_manifests(TEXT, EARLIER_CUTS):
        shards = [s for s in manifest.shards if s.role == role]
        if not fits(manifest) or not {s.key for s in shards} <= making.present[TEXT]:
            continue
        try:
            same = looks.same_rows(shards)
        except FileError as error:
            LOG.warning("left out: %s", error)
            continue
        if same > most:
            most, best = same, manifest
        if same == n_kept:
            break
    if best is None:
        return cut_afresh(survey, shard_size)
    shards = [s for s in best.shards if s.role == role]
    kept, ids = _kept(survey), _kept_ids(survey)
    *places, _ = again = remaining(ids, looks.ids_of(shards))
    left = [shard for shard, of_shard in zip(shards, places, strict=True) if len(of_shard)]
    known = {
        index: dataclasses.replace(shard, index=index)
        for index, shard in enumerate(left)
        if looks.is_same(shard)
    }
    numbers = [kept[of_shard] for of_shard in places if len(of_shard)]
    new, size = kept[again[-1]], int(best.fields.get("shard_size", shard_size))
    numbers += [new[start : start + size] for start in range(0, len(new), size)]
    return Cut(numbers, known, best)


def _kept(survey: Survey) -> np.ndarray:
    """Numbers of the rows that are kept, in 4 bytes each where these do."""
    reasons = survey.reasons
    kind = np.int32 if len(reasons) < 2**31 else np.int64
    kept = np.empty(len(reasons) - np.count_nonzero(reasons), dtype=kind)
    done = 0
    for start in range(0, len(reasons), _ROWS_AT_ONCE):
        found = np.flatnonzero(reasons[start : start + _ROWS_AT_ONCE] == 0)
        kept[done : done + len(found)] = start + found
        done += len(found)
    return kept


def _kept_ids(survey: Survey) -> np.ndarray:
    return survey.ids if not survey.reasons.any() else survey.ids[survey.reasons == 0]


def ids_of_shards(
    store_url: str, shards: Sequence[tuple[str, ShardRecord]]
) -> list[np.ndarray] | FileError:
    """The ids of shards, each of the table beside it, or why one cannot be read."""
    store = Store(store_url)
    try:
        return [store.read_shard(t, s.key, ["id"], s)["id"].to_numpy() for t, s in shards]
    except FileError as error:
        return error


class _Looks:
    """Compares shards of earlier readings with the rows of a source."""

    def __init__(self, survey: Survey, making: Making, store: Store, each: Each):
        self._survey, self._store, self._each = survey, store, each
        self._making = dataclasses.replace(making, is_dry=True, tables=(TEXT,))
        self._is_same: dict[str, bool] = {}

    def same_rows(self, shards: Sequence[ShardRecord]) -> int:
        """How many rows lie in shards that would be made again as they are.

        Raises:
            FileError: a shard cannot be read.
        """
        unknown = [s for s in shards if s.key not in self._is_same]
        sample = unknown[:: -(-len(unknown) // SAMPLE) or 1]
        self._look_at(sample)
        if any(self._is_same[s.key] for s in sample):
            self._look_at([s for s in unknown if s.key not in self._is_same])
        return sum(s.rows for s in shards if self._is_same.get(s.key))

    def ids_of(self, shards: Sequence[ShardRecord]) -> list[np.ndarray]:
        """The ids of each shard.

        Raises:
            FileError: a shard cannot be read.
        """
        blocks = [
            [(TEXT, s) for s in shards[start : start + _SHARDS_AT_ONCE]]
            for start in range(0, len(shards), _SHARDS_AT_ONCE)
        ]
        ids: list[np.ndarray] = []
        for found in in_order(self._each, ids_of_shards, self._store.url, blocks):
            if isinstance(found, FileError):
                raise found
            ids += found
        return ids

    def is_same(self, shard: ShardRecord) -> bool:
        """Whether a shard that was compared would be made again as it is."""
        return self._is_same.get(shard.key, False)

    def _look_at(self, shards: Sequence[ShardRecord]) -> None:
        """Finds out which of the shards would be made again as they are."""
        kept, ids = _kept(self._survey), _kept_ids(self._survey)
        *places, _ = remaining(ids, self.ids_of(shards))
        self._is_same |= {shard.key: False for shard in shards}
        whole = [
            (shard.key, kept[of_shard])
            for shard, of_shard in zip(shards, places, strict=True)
            if len(of_shard) == shard.rows > 0
        ]
        nobody = self._survey._replace(reasons=np.zeros_like(self._survey.reasons))
        groups = list(groups_of(nobody, [numbers for _, numbers in whole], {}))
        for made in in_order(self._each, make_shards, self._making, groups):
            for record in made.records[TEXT]:
                self._is_same[whole[record.index][0]] = record.key == whole[record.index][0]
