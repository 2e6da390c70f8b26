"""Prompts to replies."""
