-- A row's text without case and spacing, both texts of a pair together: equal for exact duplicates.
CREATE OR REPLACE MACRO bare_text(a, b) AS
    lower(trim(regexp_replace(concat_ws(chr(1), a, b), '\s+', ' ', 'g')));
