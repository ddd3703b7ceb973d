# The public verbs of morphbits; `make` prints them. Scripts do the work, and their defaults live in Python: of the
# variables at the end of this file only those that you set are passed on (SUBJECTS=3 becomes --subjects 3).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
# threads that wait sleep: spinning ones take the cores that other samples and tests compute on; no bytes change
export OMP_WAIT_POLICY ?= PASSIVE

dashed = $(subst _,-,$(shell tr A-Z a-z <<< $1))
option = $(if $($1),--$(call dashed,$1)='$(subst ','\'',$($1))')
flag = $(if $(filter-out 0,$($1)),--$(call dashed,$1))
off = $(if $(filter 0,$($1)),--no-$(call dashed,$1))
# what each verb passes on, tests/cli/test_makefile.py compares with the options in Python
options = $(strip $(foreach name,$1,$(call option,$(name))))

venv := .venv/bin/python
morphbits := $(venv) python/morphbits
stamp := .venv/.stamp
setup = PYTHON='$(PYTHON)' TORCH='$(TORCH)' scripts/setup.sh
locks := python/requirements.lock python/torch.lock python/torch-cuda.lock
kernels := $(wildcard python/morphbits/engines/native/kernels/csrc/*)
shell_files = scripts/*.sh .ci/run $(wildcard *.sh verrou/*.sh)
# what `make docs` shows; the examples in these modules are tests
api := morphbits '!morphbits.' morphbits.registration morphbits.stats.significance
benchmark := PYTHONPATH=python $(venv) -m benchmarks
pytest := cd python && ../$(venv) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
with_tensorflow = --dist worksteal -c pyproject.toml $$(grep -rl --include='test_*.py' mark.tensorflow ../tests)

##@ Run
.PHONY: inference
inference: $(stamp) ## register SUBJECTS x RUNS samples, then significance and the report
	$(morphbits) inference $(call options,SUBJECTS RUNS ENGINE MODE DATASET FIXED BIDS_FILTER SIZE MODEL EXPERIMENT SEED \
		JOBS THREADS ACCUMULATION PRECISION PERTURB SUBNORMALS REGION LIBM ONEDNN ALIGN MODEL_ORIENTATION EXTENT \
		REGULARIZATION ORIENTATION NAN \
		FRAMEWORK DATA RESULTS EXECUTOR SLURM_OPTIONS SLURM_CONTAINER TASK_SAMPLES VIEWER) $(call off,WAIT) $(call flag,CROP) $(call flag,DRY_RUN) $(call flag,YES)

.PHONY: paper
paper: $(stamp) ## the published study: CoRR, preprocessing, 35 x 10 samples, comparison (ENGINE, DRY_RUN)
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(morphbits) paper $(call options,ENGINE SUBJECTS RUNS MODEL ROUTE SIZE SOURCE \
		TABLE JOBS DATA RESULTS THREADS EXECUTOR SLURM_OPTIONS TASK_SAMPLES) $(call off,WAIT) $(call flag,DRY_RUN) $(call flag,YES)

.PHONY: significance
significance: $(stamp) ## significant bits of an EXPERIMENT: maps and CSV
	$(morphbits) significance $(call options,EXPERIMENT RESULTS JOBS)

.PHONY: verify
verify: $(stamp) ## check an EXPERIMENT's files by their checksums, and make some samples (AGAIN) again
	$(morphbits) verify $(call options,EXPERIMENT RESULTS AGAIN SEED)

.PHONY: report
report: $(stamp) ## the HTML page of an EXPERIMENT (VIEWER)
	$(morphbits) report $(call options,EXPERIMENT RESULTS VIEWER)

.PHONY: archive
archive: $(stamp) ## an EXPERIMENT as a folder to publish: maps, tables, provenance (LICENSE)
	$(morphbits) archive $(call options,EXPERIMENT RESULTS LICENSE)

.PHONY: layers
layers: $(stamp) ## how many bits each stage of the network costs, in one SUBJECT (EXPERIMENT, NOTES)
	$(layers) stages $(layer_options)

.PHONY: precision
precision: $(stamp) ## how few bits per operation the registration needs; float16, bfloat16, tf32
	$(layers) precision $(layer_options)

.PHONY: orders
orders: $(stamp) ## how much the order of additions in convolutions changes, compared with perturbation
	$(layers) orders $(layer_options)

.PHONY: one-run
one-run: $(stamp) ## bits of every stage from one run; cancellation, subnormals (CHECK, EXPERIMENT, SUBJECT)
	$(layers) one-run $(layer_options) $(call flag,CHECK)

.PHONY: flips
flips: $(stamp) ## which ReLU, max-pool and floor decisions differ between RUNS samples, and where
	$(layers) flips $(layer_options)

layers = $(morphbits) layers
layer_options = $(call options,SUBJECT RUNS MODE ACCUMULATION SUBNORMALS DATASET FIXED BIDS_FILTER SIZE MODEL ALIGN \
	MODEL_ORIENTATION EXTENT REGULARIZATION ORIENTATION NAN EXPERIMENT SEED THREADS DATA RESULTS) $(call flag,CROP) \
	$(call flag,NOTES)

.PHONY: stability-test
stability-test: $(stamp) ## do two results, A and B, differ by more than an EXPERIMENT's rounding? (ALPHA, FLOOR)
	$(morphbits) stability-test $(call options,A B EXPERIMENT RESULTS ALPHA FLOOR)

.PHONY: machines
machines: $(stamp) ## what moves a result: an EXPERIMENT's SUBJECT by every kernel of this machine (ORDERS)
	$(morphbits) machines $(call options,EXPERIMENT RESULTS SUBJECT ORDERS) $(call flag,NOTES)

.PHONY: verrou-sanity
verrou-sanity: $(stamp) ## check in seconds that Verrou perturbs what it should and nothing else (VERROU_PREFIX)
	$(morphbits) verrou-sanity

.PHONY: compare
compare: $(stamp) ## compare native with Verrou on a small case: bits, spread, map, time (FRAMEWORK, ONEDNN)
	$(morphbits) compare $(call options,FRAMEWORK ONEDNN ACCUMULATION JOBS DATA RESULTS)

.PHONY: methods
methods: $(stamp) ## compare methods: experiments A, B, C on the same images, or a program's folder
	$(morphbits) methods $(foreach name,A B C,$(if $($(name)),'$($(name))')) $(call options,RESULTS)

.PHONY: localize
localize: $(stamp) ## which part of the network loses the bits, by Verrou's delta debugging (BY=task or symbol)
	$(morphbits) localize $(call options,BY DATA RESULTS)

##@ Train
recipe = $(call options,EXPERIMENT EPOCHS STEPS BATCH SEED THREADS ENGINE MODE ACCUMULATION SUBNORMALS PRECISION PERTURB SIZE LOSS \
	OPTIMIZER LEARNING_RATE SMOOTHNESS LABELS TARGETS DATA RESULTS) $(if $(LABELS),--source synthmorph)
training = $(recipe) $(call options,MODEL_DIR KEEP_EVERY SYNTH_PROCS) $(call flag,RESUME)

.PHONY: train-single
train-single: $(stamp) ## train a model in one process (EXPERIMENT=train-demo: minutes; RESUME=1 continues)
	$(morphbits) train $(training)

.PHONY: train-ddp
train-ddp: $(stamp) ## train in NPROC processes; on several machines with NNODES, RDZV and RUN_ID
	NPROC='$(NPROC)' NNODES='$(NNODES)' RDZV='$(RDZV)' RUN_ID='$(RUN_ID)' scripts/train_ddp.sh $(training)

.PHONY: train-slurm
train-slurm: $(stamp) ## train in NPROC processes on each of NNODES machines of a Slurm cluster (SLURM_OPTIONS)
	NPROC='$(NPROC)' NNODES='$(NNODES)' SLURM_OPTIONS='$(SLURM_OPTIONS)' scripts/train_slurm.sh $(training)

.PHONY: training-stability
training-stability: $(stamp) ## repeat a training RUNS times each, varying nothing, initial weights, data or roundings
	$(morphbits) training-stability $(recipe) $(call options,RUNS JOBS)

##@ Image with Verrou
CONTAINER ?=     ## docker or podman (default: docker)
VERROU ?=        ## current or study: which Verrou the image holds (default: current)
container := $(or $(CONTAINER),docker)
image := morphbits$(if $(filter study,$(VERROU)),-study)
build = $(container) build $(if $(filter podman,$(container)),--format docker) --build-arg VERROU=$(or $(VERROU),current) \
	--build-arg REVISION=$$(git rev-parse HEAD) --build-arg VERSION=$$(git describe --always --dirty)

.PHONY: docker
docker: .cache/$(container)-$(image) ## build the image with Verrou

.cache/$(container)-$(image): Dockerfile .dockerignore $(shell git ls-files python scripts verrou 2>/dev/null)
	mkdir -p $(@D)
	$(build) --target runtime --tag $(image) .
	touch $@

.PHONY: docker-test
docker-test: ## build the image with the tests, and run those of engines, samples and container in it
	$(build) --target test --tag $(image)-test .
	$(container) run --rm --network none --read-only --tmpfs /tmp:exec --user $$(id -u):$$(id -g) $(image)-test

##@ Data and models
.PHONY: phantom
phantom: $(stamp) ## make the phantom dataset (SUBJECTS, SIZE, SEED, DATA)
	$(morphbits) phantom $(call options,SUBJECTS SIZE SEED DATA)

.PHONY: corr
corr: $(stamp) ## get the study's CoRR images by DataLad, verified (SUBJECTS, SOURCE, TABLE, DRY_RUN)
	./install-corr.sh $(call options,SUBJECTS SOURCE TABLE JOBS DATA) $(call flag,DRY_RUN)

.PHONY: preprocess
preprocess: $(stamp) ## turn CoRR's raw heads into brains on the template's grid (ROUTE, SUBJECTS, SIZE)
	$(morphbits) preprocess $(call options,SUBJECTS TABLE ROUTE SIZE ORIENTATION NAN JOBS DATA)

.PHONY: models
models: $(stamp) ## download the published SynthMorph models (2022, and FreeSurfer 8's: 3.6 GB)
	$(morphbits) models $(call options,DATA)

##@ Develop
.PHONY: operators
operators: $(stamp) ## write the page of perturbed operators, notes/operators.md
	PYTHONPATH=python $(venv) -m morphbits.engines.native.rules.table notes/operators.md

.PHONY: setup
setup: ## install .venv from the lock files, compile the kernels (every verb does it when needed)
	@$(setup)

$(stamp): $(locks) $(kernels) scripts/setup.sh
	@$(setup)

.PHONY: test
test: $(stamp) ## the tests: CPU only, no network, seven minutes of two cores
	$(pytest) -m 'not slow and not network and not tensorflow'
	$(pytest) -m 'not slow and not network and tensorflow' $(with_tensorflow)

.PHONY: test-all
test-all: $(stamp) ## all tests, including those that take longer
	$(pytest) -m 'not tensorflow'
	$(pytest) -m tensorflow $(with_tensorflow)

.PHONY: golden
golden: $(stamp) ## record the hashes, names and bytes in tests/golden, which must not change, again
	PYTHONPATH=python $(venv) tests/golden/record.py

.PHONY: sanitize
sanitize: $(stamp) ## run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	MORPHBITS_SANITIZE=1 CC=gcc PYTHONPATH=python $(venv) -m morphbits.engines.native.kernels.build
	cd python && ../scripts/with_sanitizers.sh ../$(venv) -m pytest -q --capture=sys -m 'not slow and not gpu' -k 'not emulated' \
		../tests/engines/native/test_{sanitizers,elementwise,functions,sums,precision,convolution,nearness,resampling}.py

.PHONY: lint
lint: $(stamp) ## ruff, mypy, import-linter, shellcheck and hadolint
	cd python && ../$(venv) -m ruff check --no-cache . ../tests
	cd python && ../$(venv) -m mypy
	cd python && PYTHONPATH=. ../.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/shellcheck $(shell_files)
	.venv/bin/hadolint Dockerfile

.PHONY: docs
docs: $(stamp) ## write pages of the Python functions, from their docstrings, into build/docs/
	cd python && PDOC_ALLOW_EXEC=1 ../$(venv) -c "$$pdoc" --no-search --docformat markdown --no-show-source -o ../build/docs $(api)
	@echo build/docs/morphbits.html

# names of `morphbits` are imported when they are used; pdoc finds those that are there
define pdoc
import morphbits, pdoc.__main__
vars(morphbits).update({name: getattr(morphbits, name) for name in morphbits.__all__})
pdoc.__main__.cli()
endef
export pdoc

.PHONY: notebook
notebook: $(stamp) ## run the notebooks in notes/ and save their output
	.venv/bin/jupyter-execute --inplace notes/*.ipynb

.PHONY: bench
bench: $(stamp) ## time native and plain torch (FULL=1: at full size too), into notes/benchmarks/
	$(benchmark).$(if $(filter cuda,$(DEVICE)),gpu,native $(call options,THREADS)) $(call flag,FULL)

.PHONY: bench-kernels
bench-kernels: $(stamp) ## time kernels, operators, and what calling an operator costs, into notes/benchmarks/
	$(benchmark).kernels

.PHONY: bench-peers
bench-peers: $(stamp) ## time native on PRISM's and other networks, into notes/benchmarks/ (SMALL, THREADS)
	$(benchmark).peers $(call options,THREADS) $(call flag,SMALL)

.PHONY: function-errors
function-errors: $(stamp) ## compare vector functions with the C library on all 2^32 arguments (resumable)
	$(benchmark).function_errors

.PHONY: kernel-orders
kernel-orders: $(stamp) ## measure in which order torch and TensorFlow add, by operator, into notes/benchmarks/
	$(benchmark).kernel_orders

.PHONY: bench-joint
bench-joint: $(stamp) ## time and memory of one sample of `joint` (EXTENT=192), into notes/benchmarks/
	$(benchmark).joint $(call options,EXTENT THREADS)

.PHONY: bench-synthesis
bench-synthesis: $(stamp) ## time and memory of SynthMorph's image synthesis, into notes/benchmarks/
	$(benchmark).synthesis

.PHONY: bench-train
bench-train: $(stamp) ## time training steps in torch and in TensorFlow, into notes/benchmarks/
	$(benchmark).training

.PHONY: bench-learning
bench-learning: $(stamp) ## compare 500 steps of training with voxelmorph's own, into notes/benchmarks/
	$(benchmark).learning

.PHONY: bench-stability
bench-stability: $(stamp) ## false alarms and power of stability-test, into notes/benchmarks/
	$(benchmark).stability

.PHONY: tf-parallelism
tf-parallelism: $(stamp) ## time TensorFlow's parallel strategies on CPUs, into notes/findings/
	$(benchmark).tf_parallelism

.PHONY: model-summary
model-summary: $(stamp) ## layers, shapes and parameters of the published configuration, into notes/model_summary/
	$(benchmark).model_summary

.PHONY: parity
parity: $(stamp) ## how far the torch port is from TensorFlow, layer by layer (notes/decisions/0002)
	mkdir -p .cache
	$(morphbits) make-model --seed 1 --output .cache/parity.h5
	$(benchmark).parity --model .cache/parity.h5 $(call options,THREADS)
	$(benchmark).parity --model .cache/parity.h5 --shape 80 96 80 $(call options,THREADS)

.PHONY: lock
lock: $(stamp) ## resolve python/*.in into the lock files (keeps versions that still fit)
	cd python; compile="../.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes"; \
	export UV_CUSTOM_COMPILE_COMMAND='make lock'; \
	$$compile --no-emit-package tensorflow --no-emit-package torch requirements.in -o requirements.lock; \
	$$compile --no-config torch-cuda.in -o torch-cuda.lock -c requirements.lock; \
	suite=$$(sed -nE '/^(voxelmorph|neurite)=/d; s/^([a-z].*[^ ]) *\\$$/\1/p' requirements.lock); \
	$$compile peers.in -o peers.lock -c <(echo "$$suite") --no-emit-package torch \
		$$(sed -E 's/==.*//; s/^/--no-emit-package /' <<< "$$suite")

.PHONY: clean
clean: ## remove what make can rebuild; results/ and data/ stay
	[ ! -L .venv ] || rm .venv
	rm -rf .cache build python/build python/*.egg-info python/.pytest_cache python/.mypy_cache python/.hypothesis
	rm -rf python/morphbits/engines/native/kernels/_build
	find python tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## this list
	@awk '/^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  match($$0, /^[a-z-]+:.*## /) || match($$0, /^[A-Z_]+ [?]=.*## /) { \
	    split($$0, word, /[ :]/); printf "  %-19s%s\n", word[1], substr($$0, RLENGTH + 1) }' Makefile

##@ Variables of inference and of most other targets
SUBJECTS ?=      ## how many subjects
RUNS ?=          ## perturbed samples of each subject; training-stability: trainings of each kind
ENGINE ?=        ## what perturbs the roundings: auto, native, verrou or ieee (nothing)
MODE ?=          ## rounding: random, nearness, upward, downward, toward_zero or nearest
DATASET ?=       ## auto, phantom, corr or the folder of a BIDS dataset
FIXED ?=         ## fixed image for a BIDS dataset (default: the one in its derivatives/*/tpl-*/)
BIDS_FILTER ?=   ## which images of a BIDS dataset: 'ses-1 acq-mprage'; 'no-run run-1': no run, or run 1
SIZE ?=          ## voxel size of phantoms (also in trainings) and of preprocess: 4mm, 2mm or 1mm
MODEL ?=         ## an .h5 file; joint, affine, rigid, deform; package.module:function (default: demo model)
EXPERIMENT ?=    ## name of the folder in results/, and of its options in python/experiments/, if any
SEED ?=          ## the number from which all random seeds are derived
JOBS ?=          ## how many samples, images or trainings at a time
THREADS ?=       ## threads of each process
ACCUMULATION ?=  ## order of sums in a convolution: sequential, direct, blocked:K or probe
PRECISION ?=     ## significant bits of each operation's result, 2 to 24, or float16, bfloat16, tf32
PERTURB ?=       ## stages that are perturbed: all, only:STAGE or except:STAGE (encoder-1, flow, …)
SUBNORMALS ?=    ## subnormal numbers: keep, or flush to zero
REGION ?=        ## what Verrou perturbs: registration, or process
LIBM ?=          ## Verrou: functions of the C library are perturbed, or excluded
ONEDNN ?=        ## kernels of TensorFlow: on (oneDNN's) or off (its own)
ALIGN ?=         ## how moving and fixed image are aligned first: header, centre or auto
EXTENT ?=        ## joint, affine, rigid, deform: edge of the network's cube, 256 or 192 mm; bench-joint
REGULARIZATION ?= ## joint, deform: how smooth the warp is, 0 to 1 (default: 0.5)
MODEL_ORIENTATION ?= ## axes the model was trained in, e.g. RAS or LIA; fixed: those of the fixed file
ORIENTATION ?=   ## axes of images whose files do not give them, e.g. LAS (left, anterior, superior)
NAN ?=           ## number that replaces voxels that are NaN or infinite
CROP ?=          ## 1 leaves out the borders where both images are empty
FRAMEWORK ?=     ## what computes the network: torch or tensorflow
DATA ?=          ## folder of the datasets
RESULTS ?=       ## folder of the experiments
EXECUTOR ?=      ## where the samples run: local, or slurm (an array of those that are not done)
SLURM_OPTIONS ?= ## more options for sbatch, such as --partition=long
SLURM_CONTAINER ?= ## run Slurm's tasks in the image, by apptainer, podman or docker (IMAGE=)
TASK_SAMPLES ?=  ## Slurm: samples of one task (default: ten minutes' worth)
WAIT ?=          ## Slurm: 0 returns once the samples are submitted; the same command later collects them
VIEWER ?=        ## inference, report: N adds a page to look through the volumes of N subjects
DRY_RUN ?=       ## 1 lists what would run, with an estimate, and stops
YES ?=           ## 1 starts even what takes more than two hours
SUBJECT ?=       ## layers, precision, orders, one-run, flips, machines: number of the subject (default: 1)
NOTES ?=         ## layers, precision, orders, one-run, flips, machines: 1 writes to notes/benchmarks/ too
CHECK ?=         ## one-run: 1 makes RUNS samples as well, and compares
AGAIN ?=         ## verify: number of samples to make again (default: 2)
A ?=             ## stability-test: a result, file or folder; methods: an experiment
B ?=             ## stability-test: another result, same subjects; methods: an experiment, or a folder
C ?=             ## methods: a third experiment or folder
ORDERS ?=        ## machines: orders of additions of another machine, a file that it wrote
ALPHA ?=         ## stability-test: false-alarm level (default: 0.05)
FLOOR ?=         ## stability-test: bits in which A and B must agree in the mean
LICENSE ?=       ## archive: the licence it is published under, such as CC-BY-4.0
##@ Variables of corr, preprocess and paper
SOURCE ?=        ## where CoRR is cloned from: a mirror or a local copy (default: ///corr/RawDataBIDS)
TABLE ?=         ## CSV of the CoRR images to get (default: the 35 + 5 of the study)
ROUTE ?=         ## how CoRR is preprocessed: open, or freesurfer (needs its licence)
##@ Variables of train-single, train-ddp, train-slurm and training-stability
EPOCHS ?=        ## training epochs
STEPS ?=         ## training steps of an epoch
BATCH ?=         ## pairs per step and process
LOSS ?=          ## dice (1 - overlap of labels), or tissues (squared difference of tissue maps)
SMOOTHNESS ?=    ## weight of the warp's roughness in the loss
OPTIMIZER ?=     ## keras-adam (by which SynthMorph was trained) or torch-adam
LEARNING_RATE ?= ## highest learning rate of the optimizer, Adam
LABELS ?=        ## train on SynthMorph's images from label maps: shapes, phantom, corr or a folder
TARGETS ?=       ## labels whose overlap to optimize: fs, all, numbers (default: fs for corr, else all)
SYNTH_PROCS ?=   ## processes that make these images, on each machine (default: 1)
MODEL_DIR ?=     ## folder of the training (default: results/EXPERIMENT)
KEEP_EVERY ?=    ## N keeps the model of every Nth epoch; accuracy.csv and loss.png show their accuracy
RESUME ?=        ## 1 continues from the last checkpoint
NPROC ?=         ## processes on a machine (default: 2)
NNODES ?=        ## machines (default: 1)
RDZV ?=          ## HOST:PORT at which the machines of one training meet
RUN_ID ?=        ## name of a training on several machines, the same on each
##@ Variables of setup, bench, localize
PYTHON ?=        ## a Python 3.11, 3.12 or 3.13 (default: the first one found)
TORCH ?=         ## cpu or cuda: which build of torch (default: cpu)
DEVICE ?=        ## bench: cpu, or cuda (default: cpu)
FULL ?=          ## bench: 1 times the full size as well (20 GB of memory)
SMALL ?=         ## bench-peers: 1 takes smaller networks and inputs
BY ?=            ## localize: task (layers and steps) or symbol (compiled functions)
