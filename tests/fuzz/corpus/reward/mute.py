class Mute(BaseException):
    def __str__(self):
        raise ValueError


def score(prompts, completions, **columns):
    raise Mute
