"""`python -m qrdali` and the `qrdali` script."""

from __future__ import annotations

from qrdali.cli.main import main

if __name__ == "__main__":
    main()
