# `make demo` and `make test` set up .venv from nothing; a machine with Python >= 3.11 is enough.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
EXTRA ?= cpu
INSTALLED := $(VENV)/installed-$(EXTRA)

.PHONY: demo test test-long faults lint benchmarks clean

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

# Every fault that was thought of, 20 rounds of SIGKILL among them, and the table of them for docs/reliability.md.
faults: $(INSTALLED)
	mkdir -p runs
	FAULT_TABLE=runs/faults.md $(RUN) -m pytest -p tests.faults.table -n 2 --dist=loadfile tests/faults \
	  tests/nonfinite_test.py tests/lock_test.py tests/checkpoint_test.py tests/doctor_test.py \
	  tests/released_faults_test.py tests/released_test.py tests/download_test.py

test-long: lint
	$(RUN) -m pytest -n 2 --dist=loadfile

# REFERENCE=<checkout of google-research/simclr> REFERENCE_PYTHON=<interpreter that runs it> TORCH_PYTHON=<one with torch>
# DATA_DIR=<TFDS data sets>; each may be left out, and the goals that need it with it.
benchmarks: $(INSTALLED)
	$(RUN) -m benchmarks.all $(if $(REFERENCE),--reference=$(REFERENCE)) $(if $(DATA_DIR),--data_dir=$(DATA_DIR)) \
	  $(if $(REFERENCE_PYTHON),--reference_python=$(REFERENCE_PYTHON)) $(if $(TORCH_PYTHON),--torch_python=$(TORCH_PYTHON))

clean:
	rm -rf $(VENV) runs build *.egg-info
