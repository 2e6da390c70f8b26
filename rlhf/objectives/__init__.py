"""Pure functions on tensors. Imports torch and nothing of ours."""
