# `make run` starts the app, `make test` runs the tests, `make kernels` compiles every CUDA kernel. All first build
# .venv when it is missing or older than pyproject.toml or constraints.txt; Python 3.11+ is all they need.
PYTHON ?= python3
# cuda12 or cuda13 as the driver says, none without a GPU; or say it: make run EXTRAS=cuda12
EXTRAS ?= $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[^:]*: *\([0-9]*\).*/cuda\1/p')
# `make test EDIT=` in a fresh clone tests the built wheel, as CI does
EDIT   ?= -e
PIP    := .venv/bin/python -m pip install -c constraints.txt

.PHONY: run test check kernels lock clean

run: .venv/app
	.venv/bin/lmtop $(ARGS)

test: .venv/dev
	.venv/bin/pytest $(ARGS)

check: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# for every architecture, without a GPU; fails on a kernel that spills registers
kernels: .venv/dev
	.venv/bin/lmtop kernels --arch all $(ARGS)

lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev \
		--no-header --no-annotate -o constraints.txt

clean:
	rm -rf .venv build dist *.egg-info

.venv/app: pyproject.toml constraints.txt
	rm -rf build
	$(PYTHON) -m venv --upgrade-deps .venv
	$(PIP) $(EDIT) '.$(EXTRAS:%=[%])'
	mkdir -p .venv/src && ln -sfn ../.. .venv/src/lmtop
	touch $@

.venv/dev: .venv/app
	$(PIP) --group dev
	touch $@
