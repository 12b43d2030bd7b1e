# `make demo` and `make test` do all the set-up they need on a machine with Python 3.10 or newer.
# In an environment of one's own, without any set-up: make demo READY= PY=python3
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready
LINT_READY := $(if $(READY),$(VENV)/.lint-ready)
DOCS_READY := $(if $(READY),$(VENV)/.docs-ready)
# What `make quick` tests: from a script to audio, the rules of sampling and of the code's layout, recorded codes, the docs.
QUICK := test_architecture.py test_documentation.py test_engine.py test_sampling_params.py kernels/test_dispatch.py kernels/test_sample.py \
	model/test_config.py model/test_delay.py model/test_golden.py text/test_tokenizer.py

# Two targets that install into the environment at the same time would break it.
.NOTPARALLEL:

.PHONY: demo lint quick docs test test-slow test-server test-page test-ray test-install hear gpu clean

demo: $(READY)
	@$(PY) -m dia_engine say --model talker --seed 1 -o demo.wav --spectrogram demo.png \
		"[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well."

# Style, likely mistakes and types; pyproject.toml has the rules.
lint: $(LINT_READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Between two edits: under a minute.
quick: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not slow" $(addprefix tests/,$(QUICK))

# The API reference from the docstrings: build/api/index.html. A warning, or a docstring that is missing, is an error.
docs: $(DOCS_READY)
	$(PY) -m tools.api_reference build/api

# Two processes, and one thread of torch in each: half of the time on two cores. Each begins with a half of the files,
# so that what a file's tests share is made once, and takes over what the other has not come to. A test that hangs fails.
test: $(READY)
	$(PY) -m pytest -q -n 2 --dist worksteal -o faulthandler_exit_on_timeout=true -m "not slow and not ray" $(TESTS)

# What takes minutes or gigabytes: the 1.6B checkpoints on disk.
test-slow: $(READY)
	$(PY) -m pytest -q -m slow

# Whether the pinned versions resolve, and `make demo` and kernel tests on bare Debian systems. Needs root and mmdebstrap.
test-install:
	$(PYTHON) -m tools.installation $(PARTS)

# Stock clients against a running server, in an environment of their own, and a fuzzer of its schema. BARS=folder runs more.
test-server: $(READY)
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install -q -r tests/server/clients/requirements.txt
	$(PY) -m tests.server.clients.run .venv-clients/bin/python $(BARS)

# The page in a headless Chromium, with pictures of it. Needs one: apt install chromium
test-page: $(READY)
	$(PY) -m pip install -q playwright axe-playwright-python
	$(PY) -m tests.server.page.run --screenshots docs/images

# The server on Ray Serve and batch jobs on Ray Data, in a cluster of this machine. BARS=folder runs bar_openai.py there too.
test-ray: $(READY)
	$(PY) -m pip install -q -c constraints.txt --no-build-isolation -e ".[ray]"
	$(if $(BARS),$(PYTHON) -m venv .venv-clients)
	$(if $(BARS),.venv-clients/bin/python -m pip install -q -r tests/server/clients/requirements.txt)
	BARS="$(BARS)" CLIENTS="$(CURDIR)/.venv-clients/bin/python" $(PY) -m pytest -q -m ray tests/cluster

# What the small model's speech sounds like to a speech recognizer. Needs flite: apt install flite
hear: $(READY)
	$(PY) -m pip install -q -c constraints.txt -e ".[hear]" --no-build-isolation
	$(PY) -m tools.talker.evaluate
	$(PY) -m pytest -q tests/tools/test_hearing.py

# Needs a CUDA device. PARTS="correctness speed kernels tuning audio load" or some of them; goes on where an earlier run ended.
gpu: $(READY)
	$(PY) -m benchmarks.gpu $(if $(PARTS),--parts $(PARTS)) $(if $(REFERENCE),--reference $(REFERENCE))

# The environment is made anew when what it must hold has changed. TORCH_INDEX is a package index to take torch from: the
# wheel on PyPI brings CUDA, README.md says how to do without.
$(READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt pip setuptools wheel
	$(if $(TORCH_INDEX),$(PY) -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch)
	PYTHONWARNINGS="ignore:Editable installation" $(PY) -m pip install -q -c constraints.txt --no-build-isolation -e ".[test]"
	@touch $@

# What `lint` and `docs` need more.
$(VENV)/.%-ready: $(READY)
	PYTHONWARNINGS="ignore:Editable installation" $(PY) -m pip install -q -c constraints.txt --no-build-isolation -e ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-clients build dist *.egg-info demo.wav demo.png .pytest_cache .mypy_cache .ruff_cache
