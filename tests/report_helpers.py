"""Reads the data of a report file, for tests."""

import json
import re
from pathlib import Path


def data_of(path: Path) -> dict:
    """The JSON that the script of a report shows."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))
