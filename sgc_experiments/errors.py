"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one clear sentence: what is wrong, where, and what to do. It is printed without
    a stack trace and becomes the failure reason of the MLflow run, so it never holds patient data.
    """


class Outage(UserError):  # noqa: N818 - an event, named as such
    """A disk or a server fails. When that is mended, the same command goes on in the same run."""
