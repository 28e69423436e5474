# make demo: the main job on real images. make test: all tests. Both set up .venv on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CODE := modeling tests benchmarks conversion_scripts examples notebooks

# for other versions of libraries: saving, loading, remote code, PEFT, export, commands, recipes, training, S4's cache
TESTS ?= tests/hub tests/cli tests/recipes tests/core $(wildcard tests/test_*.py) tests/models/s4/test_cache.py \
         tests/models/s4/test_kernel_mixin.py tests/training/test_optim.py tests/training/test_evaluate.py
# the newest torch may be a large build for GPUs: TORCH=torch takes it
TORCH ?= $(shell grep ^torch== constraints.txt)

.PHONY: demo test test-versions style quality bench notebooks kernels test-kernels test-gpu wheel test-wheel clean

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,plots]'
	touch $@

demo: .venv/.installed
	$(BIN)/fusible demo

test: kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 10

# the oldest versions that pyproject.toml allows, and the newest ones; TESTS=tests runs all tests
test-versions: .venv-versions/oldest/.installed .venv-versions/newest/.installed
	$(word 1,$(^D))/bin/python modeling/fusible/kernels/build.py
	for versions in $(^D); do \
	    OMP_NUM_THREADS=1 $$versions/bin/python -m pytest --numprocesses 2 --dist worksteal $(TESTS) || failed=1; \
	done; test -z "$$failed"

.venv-versions/oldest/.installed: CONSTRAINTS = $(PYTHON) .ci/oldest_versions.py
.venv-versions/newest/.installed: CONSTRAINTS = echo $(TORCH)
.venv-versions/%/.installed: pyproject.toml constraints.txt .ci/oldest_versions.py
	$(PYTHON) -m venv --clear $(@D)
	$(CONSTRAINTS) > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(@D)/constraints.txt --editable '.[dev,plots]'
	touch $@

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
	rm -rf .venv .venv-versions out modeling/fusible/kernels/*/build
