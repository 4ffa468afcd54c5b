"""What the Python interface gives back: rows that convert, and mappings that read like a command.

Thin on purpose: `Rows` hands everything to the DuckDB relation that it holds, whose interface is
documented and known; only what DuckDB cannot do, a `datasets.Dataset`, is added.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.terminal import shown


class Rows:
    """A DuckDB relation, with `to_dataset()` beside its own methods.

    `.df()`, `.pl()`, `.arrow()`, `.fetchall()`, `.columns`, `.filter(...)` and all else are those
    of `duckdb.DuckDBPyRelation`; what gives a relation there gives `Rows` here. It can be handed to
    whatever takes Arrow streams, such as `pyarrow.table(rows)`. Nothing is computed before it is
    asked for, and every method computes anew.

    Raises:
        storage.schema.StorageError: DuckDB stops on the way, whichever method is called.
    """

    def __init__(self, relation: Any):
        """Holds the relation, which keeps its connection alive."""
        self._relation = relation

    def to_dataset(self) -> Any:
        """All rows as a `datasets.Dataset` of Hugging Face, in memory."""
        from stages.corpus.huggingface import as_dataset

        return as_dataset(self.to_arrow_table())

    def __getattr__(self, name: str) -> Any:
        if name == "_relation":  # asked for by `copy` and `pickle`, before there is one
            raise AttributeError(name)
        found = getattr(self._relation, name)
        return self._explained(found) if callable(found) else self._rows(found)

    def __getitem__(self, name: str) -> Any:
        return self._explained(self._relation.__getitem__)(name)

    def __len__(self) -> int:
        return int(self._explained(self._relation.__len__)())

    def __repr__(self) -> str:
        return str(self._explained(self._relation.__repr__)())

    def _explained(self, method: Callable[..., Any]) -> Callable[..., Any]:
        from storage.views import explained  # `assay --help` should not pay for DuckDB

        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            with explained():
                return self._rows(method(*arguments, **named))

        return call

    def _rows(self, found: Any) -> Any:
        return Rows(found) if isinstance(found, type(self._relation)) else found


class Answer(dict[str, Any]):
    """What a command gives with `--json`, as a dict; its repr is what the command prints without.

    All of its values are of the types that JSON knows.
    """

    def __init__(self, values: Mapping[str, Any], show: Callable[..., None]):
        """Copies `values`; `show(values, is_json=False)` prints them for a person."""
        super().__init__(values)
        self._show = show

    def to_dict(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return dict(self)

    def __repr__(self) -> str:
        return shown(functools.partial(self._show, self, is_json=False))
