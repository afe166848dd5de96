"""Two texts side by side on a terminal, each in a column, as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from truthgpt_core.terminal_text import visible

LEAST_WIDTH = 100
"""Characters that a terminal has at least for two columns."""

_BETWEEN = " \N{BOX DRAWINGS LIGHT VERTICAL} "
_TAB = "    "


class Column:
    """Text that is broken into rows as it comes.

    Args:
        width: of a row, in character cells.

    Attributes:
        rows: those that are complete, and were not taken yet.
        line: the beginning of the row that is not complete.
        ended: whether nothing more comes.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: deque[str] = deque()
        self.line = ""
        self.ended = False

    def add(self, text: str) -> None:
        """Take the next piece of text."""
        *whole, rest = (self.line + visible(text).replace("\t", _TAB)).split("\n")
        for line in whole:
            self.rows.extend(_broken(line, self.width))
        *rows, self.line = _broken(rest, self.width)
        self.rows.extend(rows)

    def end(self) -> None:
        """Take it that nothing more comes."""
        if self.line:
            self.rows.append(self.line)
        self.line, self.ended = "", True

    def row(self) -> str:
        """Return the next row, as far as it is known."""
        return self.rows[0] if self.rows else self.line


def side_by_side(texts: Sequence[str], width: int) -> Iterator[str]:
    """Yield the lines that show texts side by side, each in a column.

    Args:
        texts: any number of lines each.
        width: of the terminal, in characters.
    """
    columns = _columns(len(texts), width)
    for column, text in zip(columns, texts, strict=True):
        column.add(text)
        column.end()
    yield from _complete_rows(columns)


def print_columns(
    titles: Sequence[str],
    texts: Sequence[Iterator[str]],
    width: int,
    write: Callable[[str], None],
) -> None:
    """Read texts in turns, and print them side by side as they come.

    Only the last line of the terminal is ever written again, so what was printed stays, however
    long the texts are. For that, the text that fills its column more slowly is read first.

    Args:
        titles: one for each text; what is too long loses its beginning.
        texts: what is read.
        width: of the terminal, in characters.
        write: prints text.
    """
    columns = _columns(len(texts), width)
    each = columns[0].width
    write(_laid_out([_title(title, each) for title in titles], each) + "\n")
    write(_laid_out(["\N{BOX DRAWINGS LIGHT HORIZONTAL}" * each for _ in texts], each) + "\n")
    turns = deque(range(len(texts)))
    try:
        while left := [number for number in turns if not columns[number].ended]:
            number = min(left, key=lambda number: len(columns[number].rows))
            turns.remove(number)
            turns.append(number)
            try:
                columns[number].add(next(texts[number]))
            except StopIteration:
                columns[number].end()
            _draw(columns, write)
    finally:
        interrupted = not all(column.ended for column in columns)
        for column in columns:
            column.end()
        if any(column.rows for column in columns):
            _draw(columns, write)
        else:
            # What may be left of a row is blank, but for the ^C of a terminal.
            write("\n" if interrupted else "\r")


def _draw(columns: Sequence[Column], write: Callable[[str], None]) -> None:
    """Print the rows that all columns have, and what is known of the next."""
    for row in _complete_rows(columns):
        write(f"\r{row}\n")
    if not all(column.ended for column in columns):
        write("\r" + _next_row(columns))


def _complete_rows(columns: Sequence[Column]) -> Iterator[str]:
    """Take the rows out that all columns have, or never will."""
    while all(column.rows or column.ended for column in columns):
        if not any(column.rows for column in columns):
            return
        yield _next_row(columns)
        for column in columns:
            if column.rows:
                column.rows.popleft()


def _next_row(columns: Sequence[Column]) -> str:
    return _laid_out([column.row() for column in columns], columns[0].width)


def _columns(count: int, width: int) -> list[Column]:
    # The last place stays free: what is written there moves the cursor in some terminals.
    each = (width - 1 - len(_BETWEEN) * (count - 1)) // count
    return [Column(each) for _ in range(count)]


def _laid_out(cells: Sequence[str], width: int) -> str:
    from rich.cells import set_cell_size

    return _BETWEEN.join(set_cell_size(cell, width) for cell in cells)


def _title(title: str, width: int) -> str:
    from rich.cells import cell_len

    title = visible(title).replace("\n", " ")
    if cell_len(title) <= width:
        return title
    while cell_len(title) >= width:
        title = title[1:]
    return f"\N{HORIZONTAL ELLIPSIS}{title}"


def _broken(line: str, width: int) -> list[str]:
    """Break a line into rows, between words where that is possible.

    Returns:
        At least one row, the last of which may be the beginning of a longer one.
    """
    from rich.cells import cell_len

    rows = []
    while cell_len(line) > width:
        # A character has no more than two cells, and some have none.
        ends = range(width // 2, len(line))
        fits = next(end for end in ends if cell_len(line[: end + 1]) > width)
        blank = line.rfind(" ", 0, fits + 1)
        if blank > 0 and line[:blank].strip():
            rows.append(line[:blank].rstrip())
            line = line[blank + 1 :]
        else:
            rows.append(line[:fits])
            line = line[fits:]
    return [*rows, line]
