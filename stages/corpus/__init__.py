"""Reading a source into the rows of a corpus, part by part; no stage."""
