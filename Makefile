# One command from a checkout to a report; `make` alone lists the targets.

PYTHON ?= python3
JOBS ?=
WORKERS ?=
DATA ?=
DEVICE ?= cuda
RESULTS ?= results
EXPERIMENT ?=
METHOD ?=
METHODS ?=
CLUSTER ?=
YES ?=
ROWS ?=
SEEDS ?=
SESSION ?=
STAGE ?=
TEST_JOBS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) < 7 ? $$(getconf _NPROCESSORS_ONLN) + 2 : 8 )))

# The experiment that is meant where EXPERIMENT names none.
FIRST := first_look

VENV := .venv
RUN := $(VENV)/bin/python
HARNESS := $(RUN) -m harness
PIP := $(RUN) -m pip --disable-pip-version-check --no-input --quiet
# Only the examples without a framework: the types of the frameworks are not complete.
SOURCES := cser_bench examples/plain.py examples/ddp_hook.py examples/nanogpt.py
# Files of methods of one's own that the records were made with.
METHODS_OPTION = $(if $(METHODS),--methods $(METHODS))
RUN_OPTIONS = $(METHODS_OPTION) $(if $(ROWS),--rows $(ROWS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs "$(JOBS)") $(if $(WORKERS),--workers "$(WORKERS)") $(if $(DATA),--data "$(DATA)")
# At paper scale: a process and a GPU for each worker, or where there are too few GPUs all workers in one process on one.
PAPER_OPTIONS = --device "$(DEVICE)" $(if $(WORKERS),,--workers auto) $(RUN_OPTIONS)
# Without STAGE= the first one, where no rows or seeds are named.
STAGE_OPTION = --stage "$(or $(STAGE),first)"
PART_OPTION = $(if $(STAGE),$(STAGE_OPTION),$(if $(ROWS)$(SEEDS),,$(STAGE_OPTION)))
RESULTS_OPTION = $(if $(filter-out results,$(RESULTS)),--results "$(RESULTS)")

# Measurements of this machine: results/ has those that ship, by the same names.
MEASURED = $(if $(filter results,$(RESULTS)),results/own,$(RESULTS))

SUBMIT_OPTIONS = --cluster "$(CLUSTER)" $(if $(DATA),--data "$(DATA)") $(if $(YES),--yes) $(RESULTS_OPTION)

export PYTHON VENV

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup reproduce answers plan try status report bench test check clean
.PHONY: plan-cifar100 plan-imagenet reproduce-small reproduce-cifar100 reproduce-imagenet resubmit gpu-check netlab speedups

help: ## print this list
	@width=$$( (stty size < /dev/tty) 2>/dev/null | cut -d ' ' -f 2); \
	awk -F ':.*## ' -v width="$${width:-80}" "$$FOLDED_LIST" $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Variables, with what they are now:"
	@echo "  PYTHON=$(PYTHON)  DEVICE=$(DEVICE) (of reproduce-cifar100 and -imagenet)"
	@echo "  JOBS=$(or $(JOBS),(number of cores))  WORKERS=$(or $(WORKERS),auto) (or stacked, processes)"
	@echo "  DATA=$(or $(DATA),(found or fetched))  RESULTS=$(RESULTS)"
	@echo "  EXPERIMENT=$(or $(EXPERIMENT),(of each target))  METHODS=$(or $(METHODS),(all))  STAGE=$(or $(STAGE),first)"
	@echo "  CLUSTER=$(or $(CLUSTER),(none: this machine))  YES=$(YES)"

# The targets with what they do, in lines of `width` characters.
define FOLDED_LIST
/^[a-z0-9-]+:.*## / {
  line = sprintf("make %-19s", $$1)
  count = split($$2, words, " ")
  for (number = 1; number <= count; number++) {
    if (length(line) + 1 + length(words[number]) > width) {
      print line
      line = sprintf("%24s", "")
    }
    line = line " " words[number]
  }
  print line
}
endef
export FOLDED_LIST

setup: $(VENV)/.installed ## make .venv and install the project in it (once)
	@echo "setup: $(VENV) is ready"

reproduce: NAME = $(or $(EXPERIMENT),$(FIRST))
reproduce: $(VENV)/.installed ## train what is missing of a first look (EXPERIMENT= names another experiment), write its report, print its table
	@echo "$@: running the experiment"
	@$(HARNESS) run $(NAME) $(RUN_OPTIONS) $(RESULTS_OPTION)
	@echo "$@: writing the report"
	@$(HARNESS) report $(NAME) $(METHODS_OPTION) $(RESULTS_OPTION)

answers: $(VENV)/.installed ## write results/answers: readers' questions, and which method when (with RESULTS= from your records too)
	@$(RUN) -m harness answers --results "$(RESULTS)"

plan: $(VENV)/.installed ## say what reproduce would run, and what it would cost; runs nothing
	@$(HARNESS) plan $(or $(EXPERIMENT),$(FIRST)) $(if $(STAGE),$(STAGE_OPTION)) $(METHODS_OPTION) $(RESULTS_OPTION)

plan-cifar100: ## as plan, for a stage of the paper's CIFAR-100 experiment
plan-imagenet: ## as plan, for a stage of the paper's ImageNet experiment
plan-cifar100 plan-imagenet: plan-%: $(VENV)/.installed
	@$(HARNESS) plan $* $(STAGE_OPTION) $(RESULTS_OPTION)

reproduce-cifar100: ## the first stage of the paper's CIFAR-100 experiment (STAGE=second, all), on GPUs here or CLUSTER=
reproduce-imagenet: ## the paper's ImageNet experiment, likewise; DATA= is the folder with train/ and val/
ifeq ($(CLUSTER),)
reproduce-cifar100 reproduce-imagenet: reproduce-%: $(VENV)/.installed
	@echo "$@: looking at data, disk and GPUs"
	@$(HARNESS) preflight $* $(PART_OPTION) $(PAPER_OPTIONS) $(RESULTS_OPTION)
	@$(if $(YES),:,printf 'so many hours: go on? [y/N] '; read -r said && [ "$$said" = y ] || \
	    { echo "$@: nothing was run; say y, or give YES=1" >&2; exit 2; })
	@echo "$@: running the experiment"
	@$(HARNESS) run $* $(PART_OPTION) $(PAPER_OPTIONS) $(RESULTS_OPTION)
	@echo "$@: writing the report"
	@$(HARNESS) report $* $(RESULTS_OPTION)
else
# These submit job arrays to a Slurm cluster and return; see docs/slurm.md.
reproduce-cifar100 reproduce-imagenet: reproduce-%: $(VENV)/.installed
	@$(HARNESS) submit $* $(STAGE_OPTION) $(SUBMIT_OPTIONS)
endif

reproduce-small: $(VENV)/.installed ## six short runs, here or with CLUSTER= on a Slurm cluster, and their report
	@echo "$@: running the experiment"
	@$(if $(CLUSTER),$(HARNESS) submit fashion_mnist_small $(SUBMIT_OPTIONS) --yes --wait,\
	    $(HARNESS) run fashion_mnist_small $(RUN_OPTIONS) $(RESULTS_OPTION))
	@echo "$@: writing the report"
	@$(HARNESS) report fashion_mnist_small $(RESULTS_OPTION)

resubmit: $(VENV)/.installed ## submit what is left of EXPERIMENT= on a Slurm cluster, as it was submitted before
	@$(HARNESS) submit "$(EXPERIMENT)" $(if $(STAGE),$(STAGE_OPTION)) $(METHODS_OPTION) $(if $(YES),--yes) $(RESULTS_OPTION)

try: $(VENV)/.installed ## rank a method of your own, METHOD=FILE.py, among five that ship
	@$(HARNESS) try $(if $(METHOD),"$(METHOD)",$(error give METHOD=FILE.py, as examples/growing_local_sgd.py)) \
	    $(if $(JOBS),--jobs "$(JOBS)") $(if $(DATA),--data "$(DATA)") $(RESULTS_OPTION)

status: $(VENV)/.installed ## say which runs are done, on, failed or missing, here and on clusters
	@$(HARNESS) status $(or $(EXPERIMENT),$(FIRST)) $(if $(STAGE),$(STAGE_OPTION)) $(METHODS_OPTION) $(RESULTS_OPTION)

report: $(VENV)/.installed ## write the report from the records there are (EXPERIMENT=first_look)
	@$(HARNESS) report $(or $(EXPERIMENT),$(FIRST)) $(METHODS_OPTION) $(RESULTS_OPTION)

# One process, so that nothing that is timed runs beside anything else.
MEASURE = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -v -o junit_family=xunit1 tests/measured

bench: $(VENV)/.installed-dev ## time the optimisers' own arithmetic on this machine, into results/own/bench
	@$(MEASURE) -m bench --junit-xml "$(MEASURED)/bench/bench.xml"

netlab: $(VENV)/.installed ## time collectives on an emulated network of this machine's own (Linux, root)
	@$(HARNESS) netlab --output "$(RESULTS)/netlab"

speedups: $(VENV)/.installed ## time methods and baselines on such a network, then write the report; SESSION=scored, table, wide, consecutive or text times that alone
	@$(HARNESS) speedups $(if $(SESSION),--only "$(SESSION)") \
	    --output "$(MEASURED)/$(if $(filter scored table,$(SESSION)),scored_speedups,speedups)"

gpu-check: $(VENV)/.installed-dev ## try and time on GPUs what experiments rely on there; skipped where there is none
	@$(MEASURE) -m gpu --junit-xml "$(RESULTS)/gpu/gpu_check.xml"

# One thread per worker of the tests: they already run on all cores. Two workers more than cores, since tests of clusters and
# networks wait for most of their time.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -q -n "$(TEST_JOBS)" --durations 25 tests

TIMED = took() { echo "check: $$part took $$(( $$(date +%s) - began )) s"; }; \
    begin() { part=$$1; began=$$(date +%s); echo "check: $$part"; }; begin

test: $(VENV)/.installed-dev ## run the tests, but for those marked whole, which take long
	@echo "test: running the tests, without those that check runs too"
	@$(PYTEST) -m "not bench and not whole"

# Each part with the seconds that it took.
check: $(VENV)/.installed-dev ## check style, types and layers, print code tokens, then run all tests
	@$(TIMED) style; $(VENV)/bin/ruff check --quiet . && $(VENV)/bin/ruff format --check --quiet . && took
	@$(TIMED) types; $(RUN) -m mypy --strict $(SOURCES) && took
	@$(TIMED) layers; $(VENV)/bin/lint-imports --no-logo && took
	@$(TIMED) size; $(RUN) -m tests.code_tokens && took
	@$(TIMED) tests; $(PYTEST) && took

clean: ## remove .venv and caches; results stay
	@echo "clean: removing $(VENV) and caches"
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './results/*' -prune -exec rm -rf {} +

# Making $(VENV), for setup. Three ways to have pip in it, as Debian leaves out the first unless asked.
define MAKE_VENV
fail() { echo "setup: $$*" >&2; exit 1; }
has() { "$$PYTHON" -c "import $$1" 2>/dev/null; }
"$$PYTHON" -c "" 2>/dev/null || \
  fail "cannot run $$PYTHON; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"
"$$PYTHON" -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
  fail "$$("$$PYTHON" --version) is too old; install Python 3.11 or newer, or name one: make PYTHON=python3.11"
rm -rf "$$VENV"
if has venv && has ensurepip; then "$$PYTHON" -m venv "$$VENV"
elif has virtualenv; then "$$PYTHON" -m virtualenv --quiet "$$VENV"
elif has venv && has pip; then
  "$$PYTHON" -m venv --without-pip "$$VENV" && \
    "$$PYTHON" -m pip --disable-pip-version-check --quiet --python "$$VENV/bin/python" install pip
else fail "$$PYTHON lacks venv or ensurepip; install them (Debian, Ubuntu: apt-get install python3-venv)," \
  "or name a Python that has them: make PYTHON=/path/to/python3"
fi || fail "$$PYTHON could not make $$VENV (its message is above); remedy that and run make again"
endef
export MAKE_VENV

# $(1): what to install, $(2): the stamp. The stamp is written last, and .busy is there while pip is at work: an install
# that was killed leaves it behind, and the next make starts afresh rather than trust half a package.
# Most of the thousands of modules are never imported: compiling them all takes longer than the rest.
define install
	@rm -f $(2)
	@touch $(VENV)/.busy
	@$(PIP) install --no-compile --editable '$(1)' || { rm -f $(VENV)/.busy; \
	    echo "setup: pip could not install the project (its message is above); if that is the network, run make again" \
	    "when it is back: what was downloaded is kept" >&2; exit 1; }
	@rm -f $(VENV)/.busy
	@touch $(2)
endef

$(VENV)/.installed: pyproject.toml
	@if [ -e $(VENV)/.busy ] || ! $(RUN) -m pip --version >/dev/null 2>&1; then \
	    echo "setup: making $(VENV)"; sh -c "$$MAKE_VENV"; fi
	@echo "setup: installing the project and what it needs (torch is large: this can take minutes)"
	$(call install,.[harness],$@)

FOR_TESTS := .[harness,dev,examples]

$(VENV)/.installed-dev: $(VENV)/.installed
	@if [ -e $(VENV)/.busy ]; then rm -f $(VENV)/.installed; $(MAKE) --no-print-directory $(VENV)/.installed; fi
	@echo "setup: installing the tools for test and check"
	$(call install,$(FOR_TESTS),$@)
