"""Has `make docs` turn links to files outside docs/ into links to the repository, as GitHub shows them."""

from __future__ import annotations

import os
import re
from typing import Any

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)((?:#[^)\s]*)?\))")


def on_page_markdown(markdown: str, /, *, page: Any, config: Any, **_: Any) -> str:
    """Returns a page's text in which relative links that leave docs/ lead to the repository's address."""

    def absolute(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join("docs", os.path.dirname(page.file.src_uri), link[2]))
        if target.startswith("docs/"):
            return link[0]
        return f"{link[1]}{config.repo_url.rstrip('/')}/blob/main/{target}{link[3]}"

    return _LINK.sub(absolute, markdown)
