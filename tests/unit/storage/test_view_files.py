"""Which views are tables as they are: read from their SQL, for no list of names would stay true."""

from storage.view_files import only_table
from storage.views import SQL, statements, tables_in

PLAIN = {
    "adam_steps": "adam_step",
    "attributions": "attribution",
    "continuations": "continuation",
    "embeddings": "embedding",
    "hidden_states": "hidden_states",
    "position_weighted": "position_weighted",
    "answer_issues": "answer_issue",
    "preference_issues": "preference_issue",
    "query_relevance": "query_relevance",
    "selection_trial": "selection_trial",
    "features": "features",
    "gradients": "gradient",
    "less": "less",
    "near_duplicates": "near_duplicate",
    "ntk": "ntk",
    "outliers": "outlier",
    "rejected": "rejected",
    "shapley": "shapley_value",
    "shapley_by_query": "shapley_query",
    "spectral_entropies": "spectral_entropy",
    "subsets": "subset",
    "token_gradients": "token_gradient",
    "tokens": "token",
    "trial_margins": "trial_margin",
}


def test_views_that_show_a_table_as_it_is() -> None:
    texts = (file.read_text(encoding="utf-8") for file in SQL.glob("*.sql"))
    tables = set().union(*map(tables_in, texts))
    found = {view: only_table(sql) for view, sql in statements(tables).items()}
    assert {view: table for view, table in found.items() if table} == PLAIN


def test_whatever_else_the_sql_says_makes_a_view_a_computed_one() -> None:
    assert only_table(['-- A note.\nSELECT a, "b",\n c FROM tables.x']) == "x"
    for rest in ("FROM tables.x WHERE a", "FROM tables.x JOIN tables.y USING (a)", "FROM other.x"):
        assert only_table([f"SELECT a {rest}"]) is None
    for columns in ("a + 1", "a AS b", "sum(a)", "DISTINCT a", "*"):
        assert only_table([f"SELECT {columns} FROM tables.x"]) is None
    assert only_table(["SELECT a FROM tables.x", "SELECT a FROM tables.y"]) is None
