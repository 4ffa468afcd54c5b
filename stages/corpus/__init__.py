"""Reading a source into the rows of a corpus; runs in the driver and is no stage."""
