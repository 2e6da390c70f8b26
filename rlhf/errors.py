"""The one exception that a user sees as a line of text."""


class UserError(Exception):
    """A mistake in what the user gave us: config, data, model or folder.

    The message is one line that names the file, line, column or key concerned. The command line prints it without a
    traceback and exits with code 2; in Python it is an ordinary exception.
    """
