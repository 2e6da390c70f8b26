"""A reward function in a module."""


def always_one(prompts, completions, **columns):
    return [1.0 for _ in completions]
