PYTHON ?= python

.DEFAULT_GOAL := help
.PHONY: help install format lint type test test-slow docs bench ci

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## install the project, its tests and the tools for working on it
	$(PYTHON) -m pip install -e '.[test,dev]'

format:  ## mend what ruff can mend, and format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lint:  ## check style, change nothing
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

type:  ## check types
	$(PYTHON) -m mypy

test:  ## the tests, without the slow ones
	$(PYTHON) -m pytest

test-slow:  ## the slow tests only
	$(PYTHON) -m pytest -m slow

docs:  ## build the site into site/, after pip install -e '.[docs]'
	$(PYTHON) -m mkdocs build --strict

bench:  ## every benchmark, one after the other; its packages come first
	$(PYTHON) -m pip install -e '.[bench]'
	for file in benchmarks/*.py; do $(PYTHON) $$file || exit 1; done

ci:  ## a new virtual environment, then the README's test command
	.ci/run
