"""The one exception a user can cause and mend."""


class InputError(ValueError):
    """A mistake of the user's: one sentence that names the offending value and the way out.

    The command line prints the sentence without a traceback and exits with 2; a notebook shows it as any ValueError.
    """
