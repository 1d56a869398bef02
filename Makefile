# make help says what there is.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Two programs on the same cores: idle OpenMP threads must sleep, not spin.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# MB of disk that a new environment takes: torch for CPUs has "cpu" in its index's address, any other build brings CUDA.
SPACE := $(if $(findstring cpu,$(TORCH)),4000,8000)
# What of the machine must change no result: threads, locale, time zone, umask, an empty home. FOLDERS=... takes others.
ELSEWHERE = env -u LANG -u LANGUAGE OMP_NUM_THREADS=$(or $(THREADS),3) LC_ALL=$(or $(LOCALE),POSIX) TZ=Pacific/Kiritimati
FOLDERS = config prompts algorithm evaluation tracking report cli storage checkpoints

# Every processor runs tests, up to four; the tests of one file share their servers and stay together. ARGS="-n 0 --pdb" takes one.
PARALLEL = -n logical --maxprocesses 4 --dist loadfile

.PHONY: help venv lock docs demo test test-elsewhere test-faults test-containers test-deep images bench explorer lint map sabotage mutants release
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 16

venv: $(READY)  ## install everything into .venv, once (TORCH="torch==2.13.0 --index-url ..." picks another build)

# Torch first and alone, in the build that is wanted; then what CI ran, every file by its hash; then this package, which pip
# cannot hash, and which fetches nothing.
$(READY): pyproject.toml constraints.hashes.txt
	@free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1024)}'); test -x $(BIN)/python || test $$free -ge $(SPACE) || { \
		echo "The disk of $(CURDIR) has $$free MB free, and $(VENV) needs $(SPACE) MB: free some space, or install a smaller build (TORCH, see README.md)." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement constraints.hashes.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

lock:  ## constraints.hashes.txt anew, after a change of pyproject.toml or constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	echo '# constraints.txt with the hash of every file that PyPI has of each package, but for torch, whose build is the user'"'"'s choice. Made by: make lock' > constraints.hashes.txt
	$(BIN)/uv pip compile --quiet --generate-hashes --all-extras --no-emit-package torch --no-annotate --no-header \
		--python $(BIN)/python $(addprefix --find-links ,$(PIP_FIND_LINKS)) --constraint constraints.txt pyproject.toml >> constraints.hashes.txt
	echo '# The default of make images: torch as PyPI has it for Linux, which on x86 is the build for CUDA, with all that it needs, every file by its hash. Made by: make lock' > images/torch.txt
	grep '^torch==' constraints.txt | $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 \
		--python-platform linux --constraint constraints.txt - >> images/torch.txt
	for stage in prepare train evaluate register cli; do \
		$(BIN)/uv pip compile --quiet $$(test $$stage = register || echo --extra $$stage) \
			$$(test $$stage != train || echo --extra cluster) --no-emit-package torch --no-emit-package marble-core \
			--no-annotate --no-header --python $(BIN)/python $(addprefix --find-links ,$(PIP_FIND_LINKS)) --constraint constraints.txt \
			pyproject.toml --output-file images/$$stage/requirements.txt || exit; \
	done

# Exit code 5 is a model that the gate refused, which is a result and no failure.
demo: $(READY)  ## prompts to a registered, better model (STEPS=100, SET="optimizer.lr=5e-4 seed=1", RUN=name)
	$(BIN)/marble run $(if $(STEPS),--set train.steps=$(STEPS)) $(foreach pair,$(SET),--set '$(pair)') $(if $(RUN),--run-id '$(RUN)') || test $$? -eq 5

test: $(READY)  ## all tests, no network needed (ARGS="-k pipeline -x")
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-elsewhere: $(READY)  ## the quick half as another machine would run it (THREADS=1 LOCALE=C.UTF-8 FOLDERS="config storage" ARGS=...)
	umask 077; home=$$(mktemp -d) && { HOME=$$home $(ELSEWHERE) $(BIN)/python -m pytest $(PARALLEL) $(addprefix tests/,$(FOLDERS)) $(ARGS); \
		code=$$?; rm -rf "$$home"; exit $$code; }

test-faults: $(READY)  ## kills, outages and broken checkpoints on real servers, some six minutes (ARGS="-k kills")
	$(BIN)/python -m pytest $(PARALLEL) -m "faults and not deep" tests/faults $(ARGS)

test-deep: $(READY)  ## what is too slow for every day, by hand (ARGS="-k name")
	$(BIN)/python -m pytest -m deep tests $(ARGS)

# Of Python it takes pip, setuptools and what writes an SBOM, so that nobody installs torch here to install it in an image.
build/tools/.ready: constraints.txt
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --constraint constraints.txt setuptools cyclonedx-python-lib
	touch $@

images: build/tools/.ready  ## the container images on this machine's engine, and an SBOM of each (REGISTRY=registry.example/team TAG=1 BASE_IMAGE=python:3.11-slim TORCH=... EXTRA=your/package ONLY=cli)
	build/tools/bin/python images/build.py $(if $(TAG),--tag '$(TAG)') --registry '$(REGISTRY)' --base-image '$(BASE_IMAGE)' $(if $(filter-out file,$(origin TORCH)),--torch '$(TORCH)') \
		--engine '$(or $(ENGINE),docker)' --flags='$(FLAGS)' $(if $(EXTRA),--extra '$(EXTRA)') $(if $(ONLY),--only $(ONLY))

test-containers: $(READY)  ## the images, and the whole pipeline in them; starts the engine itself, some twelve minutes (as root, ARGS="-k size")
	TORCH="$(TORCH)" $(BIN)/python -m pytest -m "containers and not deep" tests/containers $(ARGS)

bench: $(READY)  ## what exact balancing costs, counted and measured (ROUNDS=5; 0 counts only)
	$(BIN)/marble bench costs $(if $(ROUNDS),--rounds $(ROUNDS))

explorer:  ## the script of explorer.html, from explorer/ and the libraries that it pins (needs Node.js and npm)
	cd explorer && npm ci --no-audit --no-fund && npm run --silent build

lint: $(READY)  ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sabotage: $(READY)  ## known wrong changes of the core, and the test that fails under each, some ten minutes (ARGS="gdpo")
	PYTHONPATH=.:tests $(BIN)/python tests/sabotage.py $(ARGS)

mutants: $(READY)  ## mutation testing of the core on a sample, goes on where it stopped (ARGS="--count 60 --seed 1")
	PYTHONPATH=.:tests $(BIN)/python tests/mutants.py $(ARGS)

release: $(READY)  ## wheel, sdist and chart into dist/, with hashes and the images' digests; publishes nothing (REGISTRY=registry.example/team)
	$(BIN)/python .ci/release.py --registry '$(REGISTRY)' --engine '$(or $(ENGINE),docker)'

docs: $(READY)  ## the pages as a site in build/site; a link or an anchor that leads nowhere fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

map: $(READY)  ## the packages as they import each other: levels, boxes, arrows, circles
	$(BIN)/python docs/map.py
