# Every target sets up its own environment from nothing; the second time takes seconds.
#   make demo       learn scores of stars and digits, sample, check; leaves reports/
#   make test       the test suite (make test-slow: the long statistical runs)
#   make dist-check build sdist and wheel, install them alone, run the commands of the README
#   make test-min   the test suite on the oldest versions, constraints-min.txt
#   make lint       style and types      make docs  the site, and the Python of README and pages
#   make bench      the benchmarks

PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
INSTALL := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c $(CONSTRAINTS)
REPORTS ?= reports

# Installed without compiling, modules are compiled when first used; this would do it every time.
unexport PYTHONDONTWRITEBYTECODE

# Two PyTorch processes with two threads each are ten times slower on two cores than with one.
TEST_ENV := OMP_NUM_THREADS=1
WORKERS ?= 2

.PHONY: demo test test-slow test-min dist-check lint docs bench clean
.DELETE_ON_ERROR:

$(BIN)/python:
	$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradlogp needs Python 3.11 or newer")'
	$(PY) -m venv $(VENV)
ifdef TORCH_INDEX
	$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) $(shell grep '^torch==' $(CONSTRAINTS))
endif

$(VENV)/.main: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e '.[data,test]'
	@$(BIN)/gradlogp fit --help > /dev/null  # compiles what every start of the command needs
	@touch $@

$(VENV)/.lint: $(VENV)/.main
	$(INSTALL) -e '.[lint]'
	@touch $@

$(VENV)/.docs: $(VENV)/.main
	$(INSTALL) -e '.[docs]'
	@touch $@

demo: $(VENV)/.main
	$(BIN)/gradlogp demo stars --force --out $(REPORTS)
	$(BIN)/gradlogp demo digits --force --out $(REPORTS)
	@echo "Reports: $(REPORTS)/stars/index.html and $(REPORTS)/digits/index.html"

test: $(VENV)/.main
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not pages" $(ARGS)

test-slow: $(VENV)/.main
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS) -m slow $(ARGS)

test-min:
	$(MAKE) test VENV=$(VENV)-min CONSTRAINTS=constraints-min.txt

# The wheel is built from the sdist, so that both are tried; the environment has nothing else.
dist-check: | $(BIN)/python
	rm -rf dist $(VENV)-dist
	$(INSTALL) hatchling
	$(BIN)/hatchling build -t sdist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w dist dist/*.tar.gz
	$(PY) -m venv $(VENV)-dist
	$(VENV)-dist/bin/pip install --quiet --no-compile -c constraints.txt dist/*.whl
	$(VENV)-dist/bin/pip check
	cd dist && $(abspath $(VENV)-dist)/bin/python ../tests/house/base_install.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS) -m pages tests/house/test_docs.py
	rm -rf site
	$(TEST_ENV) $(BIN)/sphinx-build --quiet --jobs $(WORKERS) --fail-on-warning --keep-going \
		--fresh-env --doctree-dir $(VENV)/doctrees docs site
	$(BIN)/python docs/_ext/outside.py site
	@echo "Site: site/index.html"

bench: $(VENV)/.main
	$(TEST_ENV) $(BIN)/python benchmarks/run.py
	$(TEST_ENV) $(BIN)/python benchmarks/objectives.py
	$(TEST_ENV) $(BIN)/python benchmarks/langevin.py
	$(TEST_ENV) $(BIN)/python benchmarks/fused_hmc.py
	$(TEST_ENV) $(BIN)/python benchmarks/samplers.py
	$(TEST_ENV) $(BIN)/python benchmarks/posteriors.py
	$(TEST_ENV) $(BIN)/python benchmarks/diffusion.py
	$(TEST_ENV) $(BIN)/python benchmarks/inverse.py
	$(TEST_ENV) $(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) $(VENV)-min $(VENV)-dist dist site docs/reference reports .pytest_cache .mypy_cache .ruff_cache
