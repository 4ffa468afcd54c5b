"""Rankings of examples: top-k scores, nearest neighbours, support spectra, similar texts."""
