"""String literals and identifiers in SQL."""


def quoted(text: str) -> str:
    """A string literal: `it's` as `'it''s'`."""
    return "'" + text.replace("'", "''") + "'"


def named(name: str) -> str:
    """The identifier of a column or table, whatever signs are in it: `a"b` as `"a""b"`."""
    return '"' + name.replace('"', '""') + '"'
