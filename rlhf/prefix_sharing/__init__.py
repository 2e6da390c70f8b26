"""Computes the tokens that several sequences begin with once: a pair's prompt, or that of several completions."""
