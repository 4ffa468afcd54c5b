"""What Python functions return: rows as a DuckDB relation, or a mapping that prints as a command.

Thin on purpose: `Rows` passes every call to the DuckDB relation that it holds, whose interface is
documented and known; only the conversion to a `datasets.Dataset`, which DuckDB lacks, is added.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import RunError


class Rows:
    """A DuckDB relation, with `to_dataset()` beside its own methods.

    `.df()`, `.pl()`, `.arrow()`, `.fetchall()`, `.columns`, `.filter(...)` and all others are those
    of `duckdb.DuckDBPyRelation`; a method that returns a relation there returns `Rows` here.
    Functions that take Arrow streams take it, such as `pyarrow.table(rows)`. Rows are computed when
    a method needs them, and every method computes them anew.

    Raises:
        storage.schema.StorageError: DuckDB stops on the way, whichever method is called.
    """

    def __init__(self, relation: Any, chosen: Any = None):
        """Holds the relation, which keeps its connection alive.

        `chosen` tells of the rows that `select` gave how they were chosen; of others None.
        """
        self._relation = relation
        self.chosen = chosen

    @property
    def relation(self) -> Any:
        """The DuckDB relation."""
        return self._relation

    def to_dataset(self) -> Any:
        """All rows as a `datasets.Dataset` of Hugging Face, in memory."""
        from stages.corpus.huggingface import as_dataset

        return as_dataset(self.to_arrow_table())

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as Python's values; moments with a time zone are in UTC."""
        from storage.catalog import values  # as in `_explained`

        return self._explained(values)(self._relation)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name == "_relation":  # asked for by `copy` and `pickle`, before there is one
            raise AttributeError(name)
        attribute = getattr(self._relation, name)
        return self._explained(attribute) if callable(attribute) else self._rows(attribute)

    def __getitem__(self, name: str) -> Any:
        return self._explained(self._relation.__getitem__)(name)

    def __len__(self) -> int:
        return int(self._explained(self._relation.__len__)())

    def __repr__(self) -> str:
        return str(self._explained(self._relation.__repr__)())

    def _explained(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method of the relation, with DuckDB's errors as StorageError."""
        from storage.catalog import explained  # `assay --help` should not pay for DuckDB

        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            with explained():
                return self._rows(method(*arguments, **named))

        return call

    def _rows(self, result: Any) -> Any:
        """A relation as `Rows`; any other result as it is."""
        return Rows(result) if isinstance(result, type(self._relation)) else result


class Answer(dict[str, Any]):
    """The JSON of a command as a dict; its repr is the text that the command prints without --json.

    All of its values are of the types that JSON knows.
    """

    def __init__(self, values: Mapping[str, Any], show: Callable[..., None]):
        """Copies `values`; `show(values, is_json=False)` prints them for a person."""
        super().__init__(values)
        self._show = show

    def to_dict(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return dict(self)

    def show(self, is_json: bool = False) -> None:
        """Prints what the command prints, with `is_json` as for programs."""
        self._show(self, is_json=is_json)

    def __repr__(self) -> str:
        from pipeline.terminal import shown

        return shown(functools.partial(self._show, self, is_json=False))


def notebook_html(run: Any) -> str:
    """What a notebook shows of an opened run: the top of its report."""
    from pipeline.page.report import top_of_report  # `assay --help` should not pay for it

    return top_of_report(run)


def rows_of(text: str, total: int) -> int:
    """The number of rows that `text` stands for: a number, or a share of `total` such as `20%`.

    Raises:
        RunError: `text` is neither, or stands for more than `total` rows.
    """
    share = text.strip().endswith("%")
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    n_rows = total * number / 100 if share else number
    if not 0 <= n_rows <= total or (not share and not number.is_integer()):
        raise RunError(
            f"select: found {text!r}, expected a number of rows up to {total} or a share such as "
            "20%. Correct the number."
        )
    return round(n_rows)
