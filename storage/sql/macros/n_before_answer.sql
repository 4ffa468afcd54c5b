-- How many of the messages of `turns_of` stand before the last one that is learned. The name of a
-- lambda's argument is no table's: DuckDB would take that.
CREATE OR REPLACE MACRO n_before_answer(turns) AS
    len(turns) - list_position(list_reverse(list_transform(turns, lambda message:
        message.role = 'assistant' AND coalesce(message.weight, 1) <> 0
        AND coalesce(message.train, true))), true);
