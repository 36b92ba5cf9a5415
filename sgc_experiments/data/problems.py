"""Everything that is wrong with a release's tables, collected first and told together.

A reader that stops at the first bad row makes its user repair a release one row at a time. Readers
therefore note what they find here and raise once. Rows are told by number, never by content: the
content of these tables identifies patients.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from sgc_experiments.errors import UserError

SHOWN_ROWS = 5
SHOWN_PROBLEMS = 20


class Problems:
    """A list of problems of one release; `raise_if_any` ends the reading with all of them."""

    def __init__(self, release: str) -> None:
        self._release = release
        self._lines: list[str] = []

    def add(self, what: str) -> None:
        """Note a problem that belongs to no row."""
        self._lines.append(what)

    def add_rows(self, table: str, what: str, rows: Iterable[int]) -> None:
        """Note that `what` holds for `rows` of the file `table`; nothing if `rows` is empty.

        Args:
            table: file name of the table, as released.
            what: what is wrong, without any of the table's values.
            rows: row numbers as a spreadsheet shows them, the header being row 1.
        """
        rows = sorted(rows)
        if not rows:
            return
        shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS])
        more = ", …" if len(rows) > SHOWN_ROWS else ""
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
        self._lines.append(f"{table}: {what} in {count} ({shown}{more})")

    def raise_if_any(self) -> None:
        """Raise one `UserError` that lists what was noted, at most `SHOWN_PROBLEMS` of it."""
        if not self._lines:
            return
        lines = [f"  - {line}" for line in self._lines[:SHOWN_PROBLEMS]]
        hidden = len(self._lines) - len(lines)
        if hidden:
            lines.append(f"  … and {hidden} more")
        raise UserError(
            f"The {self._release} tables do not fit the files or each other "
            f"(problems: {len(self._lines)}; the header counts as row 1):\n" + "\n".join(lines)
        )


def row_numbers(selected: pd.Series) -> list[int]:
    """Spreadsheet row numbers (header = 1) of the true entries of a mask with a table's index."""
    return [int(position) + 2 for position in selected.index[selected.to_numpy(bool)]]


def read_csv_text(path: Path) -> pd.DataFrame:
    """A CSV file with every field as a stripped string; missing fields are empty strings.

    Column names are stripped and lower-cased, runs of blanks and underscores become one blank,
    because the same column is spelled `breast_density` in one released table and `breast density`
    in the next. Line breaks inside quoted fields, which released path columns end with, are
    removed. A column name that occurs twice keeps its first occurrence. Empty rows are left out;
    the index counts them, so that `row_numbers` are those that a spreadsheet shows.

    Raises:
        UserError: the file is not a CSV table in UTF-8. The parser's own message is withheld, since
            it quotes the file.
    """
    try:
        with warnings.catch_warnings():
            # Rows that are longer than the header: which of their fields are meant, nobody knows.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                skip_blank_lines=False,
                index_col=False,
            )
    except pd.errors.ParserWarning:
        raise UserError(
            f"{path.name} has rows with more fields than its header; quote fields that hold a "
            "comma, and end no row with one."
        ) from None
    except UnicodeError:
        # Read with substitutes, two patients' names could become one.
        raise UserError(
            f"{path.name} is not encoded in UTF-8; save it as a CSV table in UTF-8."
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError):
        raise UserError(
            f"{path.name} could not be read as a CSV table; download it again."
        ) from None
    table.columns = [
        " ".join(str(name).replace("_", " ").lower().split()) for name in table.columns
    ]
    table = table.loc[:, ~table.columns.duplicated()].fillna("")
    table = table.apply(lambda column: column.str.replace(r"[\r\n]+", "", regex=True).str.strip())
    return table[(table != "").any(axis=1)]
