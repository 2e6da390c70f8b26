"""Evidence: sampled replies become paired comparisons with intervals, and a report of the whole run."""
