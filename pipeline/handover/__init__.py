"""What leaves a run for other tools, and what comes back: reviews, data sets of the hub."""
