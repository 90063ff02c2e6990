PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types unit browser clean

demo: .venv/installed
	$(BIN)/qrdali demo --out demo

test: lint types unit

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

unit: .venv/installed browser
	$(BIN)/pytest

browser:
	@tests/browser.sh

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo
