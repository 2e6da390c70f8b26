"""Runs side by side: which there are and how far each is, and in what two of them differ."""
