"""What: one file per method; mathematics in, rows out."""
