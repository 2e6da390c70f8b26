"""Policies: what they write, and the seam to the training that optimises them online."""
