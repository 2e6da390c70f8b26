"""One YAML file is a project: its sections as dataclasses, read and checked without a heavy import."""
