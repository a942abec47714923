# `make demo` and `make test` set up .venv from nothing; a machine with Python >= 3.11 is enough.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
EXTRA ?= cpu
INSTALLED := $(VENV)/installed-$(EXTRA)

.PHONY: demo test test-long lint benchmarks clean

$(INSTALLED): setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "simclr_tf needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA),test]'
	touch $@

demo: $(INSTALLED)
	$(RUN) run.py --flagfile=flags/demo.flags

lint: $(INSTALLED)
	$(RUN) -m ruff check .

test: lint
	$(RUN) -m pytest -m 'not long' -n 2 --dist=loadfile

test-long: lint
	$(RUN) -m pytest -n 2 --dist=loadfile

# REFERENCE=<checkout of google-research/simclr> REFERENCE_PYTHON=<interpreter that runs it> TORCH_PYTHON=<one with torch>
# DATA_DIR=<TFDS data sets>; each may be left out, and the goals that need it with it.
benchmarks: $(INSTALLED)
	$(RUN) -m benchmarks.all $(if $(REFERENCE),--reference=$(REFERENCE)) $(if $(DATA_DIR),--data_dir=$(DATA_DIR)) \
	  $(if $(REFERENCE_PYTHON),--reference_python=$(REFERENCE_PYTHON)) $(if $(TORCH_PYTHON),--torch_python=$(TORCH_PYTHON))

clean:
	rm -rf $(VENV) runs build *.egg-info
