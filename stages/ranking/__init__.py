"""Which examples stand out."""
