# make demo: the main job on real images. make test: all tests. Both set up .venv on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CODE := modeling tests benchmarks conversion_scripts examples notebooks

.PHONY: demo test style quality bench notebooks kernels test-kernels test-gpu wheel test-wheel clean

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,plots]'
	touch $@

demo: .venv/.installed
	$(BIN)/fusible demo

test: kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 10

style: .venv/.installed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

quality: .venv/.installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/codespell

bench: .venv/.installed
	$(BIN)/python benchmarks/repavit.py

# executes them and keeps their outputs
notebooks: .venv/.installed
	$(BIN)/python notebooks/execute.py

# compiles S4's operations into the package's folder, from where a wheel takes them
kernels: .venv/.installed
	$(BIN)/python modeling/fusible/kernels/build.py

# their tests once more, with the compiler's checks of all accesses to memory
test-kernels: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python modeling/fusible/kernels/sanitize.py tests/kernels/s4/test_operations.py tests/kernels/s4/test_cauchy.py

# what needs a GPU
test-gpu: kernels
	CUDA_VISIBLE_DEVICES=0 $(BIN)/python -m pytest -m gpu

# with the kernels if there is a compiler, otherwise for all platforms and without
wheel: kernels
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	ls dist

# the wheel's kernels load and run where there is no compiler
test-wheel: wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target dist/installed dist/*.whl
	cd dist/installed && PATH= PYTHONPATH=. $(CURDIR)/$(BIN)/python ../../.ci/check_wheel.py

clean:
	rm -rf .venv out modeling/fusible/kernels/*/build
