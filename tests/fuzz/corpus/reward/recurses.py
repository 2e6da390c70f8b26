def score(prompts, completions, **columns):
    return score(prompts, completions)
