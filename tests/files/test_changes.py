"""What differs between two sets of options, and the SHA-256 of a file."""

import hashlib
from pathlib import Path

from qrdali.files import hashing
from qrdali.files.changes import describe_changes
from qrdali.files.hashing import sha256_of


def test_each_key_that_differs_is_shown_with_both_values_in_alphabetical_order() -> None:
    before = {"step": 0.25, "init": "", "same": 1, "gone": True}
    now = {"step": 0.5, "init": "runs/a", "same": 1, "added": [1, 2]}
    assert describe_changes(before, now) == [
        "added None → [1, 2]",
        "gone True → None",
        "init '' → runs/a",
        "step 0.25 → 0.5",
    ]
    assert describe_changes(before, now, ignored=("added", "gone", "init", "absent")) == ["step 0.25 → 0.5"]
    assert describe_changes(before, dict(before)) == []


def test_hostile_keys_and_values_stay_on_one_line() -> None:
    assert describe_changes({"a\nb": "x\x1b[31m"}, {}) == ["a?b x?[31m → None"]


def test_the_sha256_of_a_file_of_several_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * (hashing._BLOCK // 256 * 2) + b"rest"
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
