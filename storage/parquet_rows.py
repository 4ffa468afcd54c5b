"""Rows of a large row group of a Parquet file in their order, decoded as they are asked for.

A row group has no place to begin at but its first row, and a scan by `pyarrow.dataset` decodes all
of it before it gives a row. So whoever reads a group range after range reads on in one reading.
"""

from collections.abc import Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

_BATCH_ROWS = 1 << 10
"""Rows that are decoded at a time: 8 MB of vectors of 2,048 numbers."""
_BUFFER_BYTES = 16 << 20
"""Of the file that are read ahead, of all columns together."""


class RowGroups:
    """The rows of some row groups, read forwards alone."""

    def __init__(self, stream: IO[bytes], groups: Sequence[int]):
        """Begins at the first row; `close` gives the stream back."""
        written = pq.read_metadata(stream)
        buffer = max(1 << 16, _BUFFER_BYTES // max(1, written.num_columns))
        stream.seek(0)
        file = pq.ParquetFile(stream, metadata=written, buffer_size=buffer, pre_buffer=False)
        self.n_rows = sum(written.row_group(group).num_rows for group in groups)
        self.at = 0
        """The first row that was not read."""
        self._stream = stream
        self._batches = file.iter_batches(_BATCH_ROWS, row_groups=list(groups), use_threads=False)
        self._schema = file.schema_arrow
        self._rest: pa.RecordBatch | None = None

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows from `start`, which is not before `at`, to `stop`; those before are skipped."""
        found: list[Any] = []
        while self.at < stop:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                break
            end = min(stop - self.at, batch.num_rows)
            begin = min(max(start - self.at, 0), end)
            found += [batch.slice(begin, end - begin)] if begin < end else []
            self._rest = batch.slice(end) if end < batch.num_rows else None
            self.at += end
        return pa.Table.from_batches(found, self._schema)
