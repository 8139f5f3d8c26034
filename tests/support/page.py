"""The places in the documentation that are written by programs."""

from __future__ import annotations

from pathlib import Path

RELIABILITY = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


class Place:
    """Where one program puts its table: between two marks that name it.

    Args:
        package: Whose program it is, such as ``tests.faults``.
        page: The page.
    """

    def __init__(self, package: str, page: Path = RELIABILITY) -> None:
        self.path = page
        self.begin = f"<!-- written by python -m {package} --write-docs -->"
        self.end = f"<!-- end of what python -m {package} has written -->"

    def _around(self) -> tuple[str, str]:
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        before, begun, rest = text.partition(self.begin)
        _, ended, after = rest.partition(self.end)
        if not begun or not ended or text.count(self.begin) > 1:
            raise SystemExit(f"{self.path}: expected one line {self.begin} and, below it, {self.end}")
        return before, after

    def check(self) -> None:
        """Makes sure that there is such a place, before the work and not after it.

        Raises:
            SystemExit: The page, or one of the marks, is missing, or they are in the wrong order.
        """
        self._around()

    def with_text(self, text: str) -> str:
        """Returns the content of the page with the text in this place.

        Raises:
            SystemExit: As with ``check``.
        """
        before, after = self._around()
        return f"{before}{self.begin}\n\n{text}\n\n{self.end}{after}"

    def put(self, text: str) -> None:
        """Replaces what is there.

        Raises:
            SystemExit: As with ``check``; nothing was written.
        """
        self.path.write_text(self.with_text(text), encoding="utf-8")
