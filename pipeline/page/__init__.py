"""Pages of HTML: a report of a whole run, and explanations of predictions. One style for all."""
