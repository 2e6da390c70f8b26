"""A judge that lies in a module."""


def one(prompts, completions, **columns):
    return [1.0 for _ in completions]
