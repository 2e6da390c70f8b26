def score(prompts, completions, **columns):
    import os

    os.close(2)
    return 1 / 0
