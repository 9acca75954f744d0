# make demo   from nothing to a report: environment, synthetic speech, a sparse network
# make test   all checks: linters, types, import contract, tests
# make docs   the manual, in site/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Names the report of the last demo run. Older than the program: the demo is run again.
DEMO := runs/.demo
PROGRAM := $(shell find train.py sv_sparse conf constraints.txt -name '*.py' -o -name '*.cpp' -o -name '*.yaml' \
	-o -name '*.txt' -o -name '*.html' -o -name '*.css')

.DELETE_ON_ERROR:
.PHONY: demo test lint docs setup clean

demo: $(READY)
	@if [ -f $(DEMO) ] && [ ! -f "$$(cat $(DEMO))" ]; then rm $(DEMO); fi
	@if $(MAKE) --no-print-directory --question $(DEMO); then \
		echo "The demo has been run; its report is $$(cat $(DEMO)) (remove $(DEMO) to run it again)."; \
		awk '/^[|]/ {print; table = 1; next} table {exit}' "$$(cat $(DEMO))"; \
	else $(MAKE) --no-print-directory $(DEMO); fi

$(DEMO): $(PROGRAM)
	$(BIN)/python train.py model=ecapa target_sparsity=0.9
	@ls -t runs/*/report.md | head -n 1 > $@

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python scripts/docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The manual is in site/; to read it: $(BIN)/python -m http.server --directory site"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,onnx,serve,demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
