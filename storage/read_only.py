"""What a statement of a user may do: read. And where it is shut in, read the tables alone."""

import glob
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from storage.schema import StorageError
from storage.sql import quoted

_EXPLAIN = re.compile(r"\s*EXPLAIN\b(\s+ANALYZE\b)?(\s*\([^()]*\))?", re.IGNORECASE)
_READS = duckdb.StatementType.SELECT
"""Also of WITH, FROM, VALUES, TABLE, DESCRIBE, SUMMARIZE and SHOW. Of PIVOT with `IN` alone: any
other makes a type first."""


def refuse_changes(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Refuses all but one statement that reads; it may be explained.

    `EXPLAIN ANALYZE` runs what it explains, so that this must read, too.

    Raises:
        StorageError: there are none or several statements, or one that does not read.
        duckdb.Error: DuckDB cannot parse it.
    """
    kinds = [statement.type for statement in connection.extract_statements(sql)]
    explained = _EXPLAIN.match(sql) if kinds == [duckdb.StatementType.EXPLAIN] else None
    if explained is not None:
        kinds = [s.type for s in connection.extract_statements(sql[explained.end() :])]
    if kinds != [_READS]:
        found = ", ".join(kind.name for kind in kinds) or "no statement"
        raise StorageError(
            f"sql: found {found}, expected one statement that reads: SELECT, FROM, WITH, DESCRIBE, "
            "SHOW, SUMMARIZE, or EXPLAIN of one; PIVOT with the values, `ON column IN (...)`. "
            "Tables of a run are never changed; --out writes rows to a file."
        )


class Shut:
    """A connection that reads nothing but some folders, for good; the place where it may write."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, folders: list[str]):
        """Shuts the connection in.

        What is attached and registered stays readable. No setting can be changed afterwards.
        """
        self.place = Path(tempfile.mkdtemp(prefix="assay-"))
        weakref.finalize(self, shutil.rmtree, self.place, ignore_errors=True)
        # DuckDB compares a path as it stands in a statement, where it may be a pattern.
        known = {f(folder) for folder in [*folders, str(self.place)] for f in (str, glob.escape)}
        listed = ", ".join(quoted(f"{folder}/") for folder in sorted(known))
        for setting in (
            f"temp_directory = {quoted(str(self.place))}",
            "python_enable_replacements = false",
            f"allowed_directories = [{listed}]",
            # Without access COPY and ATTACH could still write inside of the allowed folders:
            # that nothing but reading statements gets here is for `refuse_changes`.
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")

    @contextmanager
    def written(self, path: Path) -> Iterator[Path]:
        """A path in the one place where files may be written; what is there is moved to `path`."""
        inside = self.place / f"written{path.suffix}"
        try:
            yield inside
            shutil.copyfile(inside, path)
        finally:
            inside.unlink(missing_ok=True)
