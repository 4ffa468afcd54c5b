"""A run in the browser, served to people of this machine: `assay view`."""
