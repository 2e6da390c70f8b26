def score(prompts, completions, **columns):
    import itertools

    return itertools.repeat(1.0)
