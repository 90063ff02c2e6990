PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types unit browser soak clean

demo: .venv/installed
	$(BIN)/qrdali demo --out demo

test: lint types unit

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

unit: .venv/installed browser
	$(BIN)/pytest

# Goes on where it was stopped; MINUTES=600 ROUNDS=10 for a night. The result is soak.json.
soak: .venv/installed
	$(BIN)/python tests/soak.py --minutes $(or $(MINUTES),60) --rounds $(or $(ROUNDS),2) --work soak > soak.json

browser:
	@tests/browser.sh

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo soak soak.json
