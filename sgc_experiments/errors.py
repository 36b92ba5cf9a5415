"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one clear sentence: what is wrong, where, and what to do. It is printed without
    a stack trace and becomes the failure reason of the MLflow run, so it never holds patient data.
    """
