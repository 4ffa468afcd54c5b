"""Whether a run's record holds what assay writes: its names stand in SQL and are parts of paths."""

from collections.abc import Mapping
from typing import Any

from storage.names import is_instance, is_key, is_table


def odd_in(record: Mapping[str, Any]) -> str | None:
    """What of a record is not as assay writes it; None where all is."""
    tables = record["tables"]
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        return "tables that are no mapping of stages to tables"
    for instance, states in tables.items():
        if not is_instance(instance):
            return f"the stage {instance[:60]!r}"
        for table, state in states.items():
            keys = [*_listed(state, "shards"), *filter(None, (_value(state, "manifest"),))]
            if not is_table(table) or not all(map(is_key, keys)) or "manifest" not in state:
                return f"the table {table[:60]!r} with {str(keys)[:60]}"
    kinds: dict[str, Any] = {"run_id": str, "path": str, "store": (str, type(None)), "splits": dict}
    kinds |= {"catalog": dict, "config": (str, type(None))}
    for name, kind in kinds.items():
        if name in record and not isinstance(record[name], kind):
            return f"{name}: {str(record[name])[:60]!r}"
    if "\0" in (record.get("store") or ""):
        return f"store: {record['store'][:60]!r}"
    if not all(isinstance(split, str) for split in record["splits"].values()):
        return f"splits: {str(record['splits'])[:60]}"
    return None


def _value(state: Any, name: str) -> Any:
    return state.get(name) if isinstance(state, dict) else repr(state)


def _listed(state: Any, name: str) -> list[Any]:
    value = _value(state, name)
    return value if isinstance(value, list) else [repr(value)]
