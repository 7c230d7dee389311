# make demo · make test · make bench · make docs: each makes .venv on its first call and reuses it afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
REQUIREMENTS := requirements.txt constraints.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
BENCHES := $(patsubst benchmarks/bench_%.py,bench-%,$(wildcard benchmarks/bench_*.py))
# Two pytest workers, each on one core; more threads than cores only wait for each other.
WORKERS ?= 2

.PHONY: setup demo test lint bench docs clean $(BENCHES)
.DEFAULT_GOAL := setup

setup: $(VENV)/.ready

$(VENV)/.ready: $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile -r requirements.txt -c constraints.txt
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(PIP) install --quiet --no-compile -e '.[docs]' -c constraints.txt
	touch $@

# The astronaut of scikit-image: NASA, public domain.
demo: setup
	mkdir -p out
	$(BIN)/python -c "import imageio.v3, skimage.data; imageio.v3.imwrite('out/astronaut.png', skimage.data.astronaut())"
	$(BIN)/recon run --method prohmr out/astronaut.png --out out --overwrite
	@ls -l out/astronaut/result.json out/astronaut/result.npz out/astronaut/scene.glb \
	    out/astronaut/overlay.png out/astronaut/report.html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Measurements, each alone: make bench-fit. Tables go to the terminal.
bench: $(BENCHES)

$(BENCHES): bench-%: setup
	$(BIN)/python benchmarks/bench_$*.py

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .hypothesis
