"""A finished stage in the form in which it is served: quantised, pruned, as GGUF; each held against the stage."""
