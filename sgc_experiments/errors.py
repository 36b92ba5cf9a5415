"""The exceptions that a user is meant to read, and how the others are told."""

import re
import traceback
from pathlib import Path

# Absolute, and not what follows a scheme or a word: models:/NAME, and/or.
_PATH = re.compile(r"(?<![\w/:.])~?/(?:[^\s/]*/)*[^\s/,;:'\")]+")


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one clear sentence: what is wrong, where, and what to do. It is printed without
    a stack trace. It never holds patient data, and, `without_paths`, becomes the failure reason of
    the MLflow run.
    """


class Outage(UserError):  # noqa: N818 - an event, named as such
    """A disk or a server fails. When that is mended, the same command goes on in the same run."""


def without_paths(text: str) -> str:
    """A message for others to read: where files lie can tell of whom they are."""
    return _PATH.sub("…", text)


def unwritable(folder: Path, error: OSError) -> Outage:
    """What to tell the user when the operating system does not let a folder be written."""
    return Outage(
        f"The folder {folder} cannot be written ({error.strerror}); free some space, or set "
        "cache_dir to another folder."
    )


def trace_without_messages(error: BaseException) -> str:
    """What failed and where. The message of a foreign exception can quote a header or a table."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    return "\n".join(
        [
            "Internal error, from the first cause to what came of it:",
            *(
                f"{''.join(traceback.format_tb(link.__traceback__))}{type(link).__name__}"
                for link in reversed(chain)
            ),
            "Messages are left out, since they can quote patients' data; SGC_DEBUG=1 shows them.",
        ]
    )
