# `make demo` and `make test` do all the set-up they need on a machine with Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready

.PHONY: demo test test-slow hear gpu clean

demo: $(READY)
	@$(BIN)/dia-engine say --model talker --seed 1 -o demo.wav --spectrogram demo.png \
		"[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well."

test: $(READY)
	$(PY) -m pytest -q -m "not slow"

# What takes minutes or gigabytes: the 1.6B checkpoints on disk.
test-slow: $(READY)
	$(PY) -m pytest -q -m slow

# What the small model's speech sounds like to a speech recogniser. Needs flite: apt install flite
hear: $(READY)
	$(PY) -m pip install -q -c constraints.txt -e ".[hear]" --no-build-isolation
	$(PY) -m talker.evaluate
	$(PY) -m pytest -q tests/test_hearing.py

# Needs a CUDA device. In an environment of one's own: make gpu READY= PY=python3
gpu: $(READY)
	$(PY) -m benchmarks.gpu $(if $(REFERENCE),--reference $(REFERENCE))

# The environment is made anew when what it must hold has changed.
$(READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt pip setuptools wheel
	PYTHONWARNINGS="ignore:Editable installation" $(PY) -m pip install -q -c constraints.txt --no-build-isolation -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo.wav demo.png .pytest_cache
