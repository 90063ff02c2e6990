PYTHON ?= python3
BIN := .venv/bin
# Holds 20 labelled photographs of ImageNet, for tests; nothing of what it depends on is wanted.
PHOTOGRAPHS := foolbox==3.3.4
# For every Python from the oldest that pyproject.toml admits, on the one platform there is; that every line says which is left out.
RESOLVE = UV_PYTHON_DOWNLOADS=never .upgrade/bin/uv pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.10 \
	--no-header --no-annotate --output-file .upgrade/resolved
PLATFORM = implementation_name == 'cpython' and platform_machine == 'x86_64'( and platform_python_implementation != 'PyPy')? \
	and sys_platform == 'linux'

.PHONY: demo test lint types unit reference docs browser slurm nightly soak dist constraints upgrade clean

demo: .venv/installed
	$(BIN)/qrdali demo --out demo

test: lint types unit

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed
	$(BIN)/mypy

# Two processes with one thread each: more threads than cores make networks of many ranks slower than one rank.
unit: .venv/installed browser slurm
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# What `make test` leaves out because it takes minutes: every network of torchvision and a sample of timm's, an epoch of
# one step each; jobs of Slurm that are killed and timed out; memory that must not grow.
nightly: .venv/installed browser slurm
	QRDALI_NIGHTLY=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m nightly

# Goes on where it was stopped; MINUTES=600 ROUNDS=10 for a night. The result is soak.json.
soak: .venv/installed
	$(BIN)/python tests/soak.py --minutes $(or $(MINUTES),60) --rounds $(or $(ROUNDS),3) --work soak > soak.json

# The wheel and the sdist in dist/, tried in an environment of their own; tests/dist.sh says how.
dist:
	@PYTHON=$(PYTHON) tests/dist.sh

# The pages of docs/reference, of the settings and the commands; a test holds them to what it writes.
reference: .venv/installed
	$(BIN)/python -m qrdali.cli.reference

# The site of docs/ into site/; a warning or a dead link is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

browser:
	@tests/browser.sh

slurm:
	@tests/slurm.sh

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PHOTOGRAPHS)
	touch $@

# What pyproject.toml asks for and constraints.txt lacks; the versions that stand there stay.
constraints: .upgrade/bin/uv
	cp constraints.txt .upgrade/resolved
	$(RESOLVE)
	$(pinned)

# The newest versions that pyproject.toml admits, and whether the tests pass with them.
upgrade: .upgrade/bin/uv
	rm -f .upgrade/resolved
	$(RESOLVE)
	$(pinned)
	git --no-pager diff --stat -- constraints.txt
	$(MAKE) test

define pinned
	( sed -n '/^#/p' constraints.txt; sed -E "s/ (;|and) $(PLATFORM)$$//" .upgrade/resolved ) > .upgrade/constraints.txt
	mv .upgrade/constraints.txt constraints.txt
	rm -r .upgrade
endef

.upgrade/bin/uv:
	$(PYTHON) -m venv .upgrade
	.upgrade/bin/python -m pip install --quiet --disable-pip-version-check uv

clean:
	rm -rf .venv .upgrade .dist build dist site *.egg-info demo soak soak.json
