"""The rows of the user's source, with its columns as they were, and results of the run beside them.

They are put together from the tables of the corpus, not by SQL: DuckDB has no type for some values
that a source may hold, such as a moment in a time zone or a duration in nanoseconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RunError
from stages.corpus.cells import as_json
from stages.corpus.columns import JSON, VECTOR
from storage.manifest import Manifest
from storage.sql import named
from storage.table import Store


def source_table(run: Any, statement: str, columns: Sequence[str] = ()) -> pa.Table:
    """The rows of the source whose example_id a statement over `run` gives, in its order.

    `columns` of the statement stand beside the source's own. See `source_rows`.
    """
    chosen = ", ".join(map(named, dict.fromkeys(["example_id", *columns])))
    results = run.to_arrow(f"SELECT {chosen} FROM ({statement})")
    return source_rows(run.store, run.corpus_manifests(), results, columns)


def source_rows(
    store: Store, corpus: Mapping[str, Manifest], results: pa.Table, added: Sequence[str]
) -> pa.Table:
    """The rows of the source whose `example_id` the table `results` has, in its order.

    Its columns are those that `pipeline.open_run.OpenedRun.write` promises. Memory: these rows.

    Args:
        store: Holds the tables of the corpus.
        corpus: Their manifests by table name.
        results: `example_id`, and the columns `added`.
        added: Columns to add; those that repeat one of the source are left out.

    Raises:
        RunError: the corpus was read by an earlier version, which did not note types, or kept
            conversations in its own form alone.
    """
    originals: list[Mapping[str, Any]] = corpus["extra"].details["columns"]["example"]
    has_changed_cells = corpus["text"].details.get("format") == "messages" and any(
        column["stored"] == "text" for column in originals
    )
    if has_changed_cells or not all("type" in column for column in originals):
        raise RunError(
            "found a corpus that an earlier version of assay read, expected one of this version, "
            "which keeps every value as it was. Read it again with `assay run` and the run's "
            "config.yaml; what was computed from it stays."
        )
    ids = results["example_id"].combine_chunks()
    tables = {
        name: _rows(store, corpus[name], ids)
        for name in ("text", "label", "extra", "features")
        if name in corpus
    }
    columns = {c["name"]: _column(c, tables) for c in originals}
    # SQL does not tell Text from text.
    names = {column["name"].lower() for column in originals}
    repeated = {
        column["name"]
        for column in originals
        if column["name"] == column["stored"] in ("source_id", "text", "label")
    }
    if not corpus["text"].details.get("has_text", True):
        repeated |= {"text"}
    if "features" in tables and VECTOR not in {column["stored"] for column in originals}:
        # The vectors lay in a separate file, whose rows the written ones no longer match.
        columns["assay_features" if "features" in names else "features"] = tables["features"][
            "vector"
        ]
    for name in added:
        if name not in repeated:
            columns[f"assay_{name}" if name in names else name] = results[name]
    return pa.table(columns)


def _rows(store: Store, manifest: Manifest, ids: pa.Array) -> pa.Table:
    """The rows of the examples with these ids, in their order; null where a table has none."""
    parts = []
    for shard in manifest.shards:
        if shard.role == "example":
            rows = store.read_shard(manifest.table, shard.key, listed=shard)
            parts.append(rows.filter(pc.is_in(rows["id"], value_set=ids)))
    rows = pa.concat_tables([part for part in parts if part.num_rows] or parts[:1])
    return rows.take(pc.index_in(ids, value_set=rows["id"].combine_chunks()))


def _column(column: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> Any:
    """The cells of a column of the source, in the type that it has there."""
    stored, kind = column["stored"], column["type"]
    if stored == "label":
        return _labels(tables["label"]["label"], column["cells"], kind)
    if stored == "target":
        return _targets(tables["label"]["target"], kind)
    if stored == "source_id":
        return pc.cast(tables["extra"]["source_id"], _type_named(kind))
    if stored == VECTOR:
        return tables["features"]["vector"]
    if stored in ("text", "text_b"):
        return tables["text"][stored]
    cells = tables["extra"][stored]
    return _as_json(cells) if kind == JSON else cells


def _labels(codes: pa.ChunkedArray, cells: Sequence[Any], kind: str) -> pa.Array:
    """The label of each row, spelled as the source spells its class."""
    if kind == JSON:
        spelled = _as_json(pa.array([as_json(cell) for cell in cells], pa.string()))
    else:
        spelled = pa.array(cells, _type_named(kind))
    return spelled.take(codes.combine_chunks())


def _targets(numbers: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """The targets as integers where the source has integers and no review put in a fraction."""
    wanted = _type_named(kind)
    if pa.types.is_integer(wanted):
        values = np.asarray(numbers.drop_null())
        if np.array_equal(values, np.round(values)):
            return pc.cast(numbers, wanted)
    return pc.cast(numbers, wanted) if pa.types.is_floating(wanted) else numbers


def _type_named(kind: str) -> pa.DataType:
    try:
        return pa.type_for_alias(kind)
    except ValueError:
        return pa.string()


def _as_json(cells: Any) -> Any:
    return pc.cast(cells, pa.json_(pa.string()))
