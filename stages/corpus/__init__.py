"""From a source to clean rows; runs in the driver and is no stage."""
