"""Models: loading and checking them, adapters, heads, and the probe by which a saved model is recognised."""
