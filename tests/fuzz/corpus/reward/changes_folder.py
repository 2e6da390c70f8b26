import os

os.chdir("/")


def score(prompts, completions, **columns):
    return [1.0] * len(completions)
