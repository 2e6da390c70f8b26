"""Writes a project's YAML for a user's own files, each line with its reason: looks at files, model and machine."""
