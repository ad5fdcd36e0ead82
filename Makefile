PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo
.PHONY: demo test lint clean

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[cpu,dev]'
	touch $@

# three simulated subjects with known EPVS, both levels of the app, and where the reports are
demo: $(BIN)/.installed
	rm -rf $(DEMO)
	$(BIN)/bids_epvs-simulate $(DEMO)/bids --subjects 3 --seed 1 --nprocs 2
	$(BIN)/bids_epvs $(DEMO)/bids $(DEMO)/out participant --nprocs 2
	$(BIN)/bids_epvs $(DEMO)/bids $(DEMO)/out group
	@echo "truth:    $(CURDIR)/$(DEMO)/bids/derivatives/truth"
	@echo "subjects: $(CURDIR)/$(DEMO)/out/sub-01.html ... sub-03.html"
	@echo "group:    $(CURDIR)/$(DEMO)/out/group.html"

test: $(BIN)/.installed
	$(BIN)/python -m pytest $(ARGS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bids_epvs
	$(BIN)/codespell
	$(BIN)/lint-imports --config setup.cfg

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
