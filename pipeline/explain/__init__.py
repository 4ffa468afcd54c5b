"""Why a prediction came out as it did: what a run knows of one query, and how it is shown."""
