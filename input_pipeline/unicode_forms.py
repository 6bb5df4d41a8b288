"""Unicode forms of names: the composed form (NFC), and files whose names have another form.

Windows, Linux and spreadsheets usually write `é` as one character, macOS as `e` and a mark. Both
look the same and are different texts. Labels are compared in NFC; a path keeps the form that it has
on disk.
"""

import os
import unicodedata
from pathlib import Path


def composed(text: str) -> str:
    """The text in Unicode's form NFC."""
    return unicodedata.normalize("NFC", text)


class FormFinder:
    """Finds files whose names are given in another Unicode form; lists each folder once."""

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, root: Path, path: str) -> str:
        """The path of a file in the form that it has on disk.

        Args:
          root: folder that `path` is relative to.
          path: with forward slashes.

        Returns:
          `path` itself if this file exists, or if no form of it does.
        """
        if path.isascii() or (root / path).exists():
            return path
        here, found = root, []
        for part in path.split("/"):
            if part not in ("", "..") and not (here / part).exists():
                part = self._names(here).get(composed(part), "")
                if not part:
                    return path
            here, found = here / part, [*found, part]
        return "/".join(found)

    def _names(self, folder: Path) -> dict[str, str]:
        if folder not in self._listings:
            try:
                names = os.listdir(folder)
            except OSError:
                names = []
            self._listings[folder] = {composed(name): name for name in names}
        return self._listings[folder]


def existing_path(path: Path) -> Path:
    """A path in the form that it has on disk; the path itself if no form of it exists."""
    root = Path(path.anchor or ".")
    return root / FormFinder().find(root, path.relative_to(path.anchor).as_posix())
