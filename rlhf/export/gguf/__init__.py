"""GGUF, the file that llama.cpp and what stands on it serve: which models, their metadata, tensors and tokenizers."""
