"""Samples a causal language model with a vLLM server, which runs in an environment of its own.

No version of vLLM takes the versions of torch and transformers that this package needs, so the two share nothing but
files and HTTP.
"""
