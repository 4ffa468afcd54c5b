"""Where it lies: tables on disk, and views over them."""
