# `make demo` and `make test` do everything from a fresh clone; nothing is installed outside .venv and build/.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTL_CUDA_ARCHITECTURES ?= native
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := CMakeLists.txt $(shell find csrc -type f)
BUILD_TOOLS := setuptools cmake ninja pybind11

.PHONY: demo study transfer claims test lint format bench gpu clean

demo: .venv/native
	$(BIN)/pytl finetune --data digits --method plain l2sp dtnh grod --out runs/demo --resume

# RIFLE, TRED and what they are compared with: 14 methods, 5 tasks, SEEDS seeds; the table is kept.
SEEDS ?= 5
STUDY := pytl finetune --data digits --seeds $(SEEDS) --method plain l2sp delta at bss rifle \
  dropout dropconnect stochasticdepth disturblabel cycliclr tred tred-max-mmd tred-min-mi
study: .venv/native
	mkdir -p runs
	(echo '$(STUDY)'; $(BIN)/$(STUDY) --out runs/study --resume) > runs/study.txt
	sed 's/ *$$//; /^report: /d' runs/study.txt > benchmarks/results/study_digits.txt
	cat runs/study.txt

# Advice, a search and a comparison on the five tasks, 10 seeds; the tables are kept.
PLANNED := pytl finetune --data digits --seeds 10 --method plain scratch l2sp plan --plan runs/search
transfer: .venv/native
	mkdir -p runs
	$(BIN)/pytl advise --data digits --out runs/advice > benchmarks/results/advice_digits.txt
	$(BIN)/pytl search --data digits --advice runs/advice --trials 30 --parallel 2 --out runs/search --resume > runs/search.txt
	(echo '$(PLANNED)'; $(BIN)/$(PLANNED) --out runs/planned --resume) > runs/planned.txt
	sed 's/ *$$//; /^report: /d' runs/search.txt runs/planned.txt > benchmarks/results/transfer_digits.txt
	cat benchmarks/results/transfer_digits.txt

# Four claims on transferability (arXiv:1909.12031) on the five tasks, half of the target's images; the text is kept.
CLAIMS := pytl finetune --data digits --share 0.5 --seeds 5 --method scratch plain l2sp dtnh --snapshots 4 --record 10
claims: .venv/native
	mkdir -p runs
	(echo '$(CLAIMS)'; $(BIN)/$(CLAIMS) --out runs/claims --resume) > runs/claims.txt
	(cat runs/claims.txt; echo 'pytl analyze runs/claims'; $(BIN)/pytl analyze runs/claims) > runs/analysis.txt
	sed 's/ *$$//; /^report: /d' runs/analysis.txt > benchmarks/results/claims_digits.txt
	cat runs/analysis.txt

# As many processes as there are cores, four at most.
test: .venv/native lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: .venv/native
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu')

format: .venv/native
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# On a machine with an NVIDIA GPU, with the torch that is installed there.
gpu:
	$(PYTHON) benchmarks/gpu.py

bench: .venv/native
	$(BIN)/pytl bench --out benchmarks/results

.venv/packages: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv .venv
	$(PIP) $(BUILD_TOOLS)
	$(PIP) --no-build-isolation --editable '.[all,dev]'
	touch $@

.venv/native: .venv/packages $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf .venv build runs pytl/_core*.so
