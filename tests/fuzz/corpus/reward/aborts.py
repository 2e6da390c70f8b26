def score(prompts, completions, **columns):
    import os

    os.abort()
