# `make quickstart` and `make test` need nothing but Python 3.11 or newer; each makes its own environment.

PYTHON ?= python3
RUN := .venv
TEST := .venv-test
TOOLS := .venv-tools
LOWEST := .venv-lowest

.PHONY: quickstart toy-flux toy-lora toy-vision test test-slow test-lowest fuzz lint format lock audit clean always

quickstart: $(RUN)/installed
	$(RUN)/bin/dsd quickstart --output_dir outputs/quickstart

# Makes the weights in dsd_jax/toy/flux from scratch. If it was stopped, start it again to resume.
toy-flux: $(RUN)/installed
	$(RUN)/bin/dsd train toy_vae --output_dir outputs/toy/vae
	$(RUN)/bin/dsd train toy_teacher --base_path outputs/toy/vae/flux --output_dir outputs/toy/teacher
	$(RUN)/bin/dsd train toy_decoder --base_path outputs/toy/teacher/flux --output_dir outputs/toy/decoder

# Makes the student in dsd_jax/toy/lora by a longer quickstart.
toy-lora: $(RUN)/installed
	$(RUN)/bin/dsd quickstart --output_dir outputs/toy/lora --minutes 60 \
	  --tasks identity=10 relight=7 depth=3
	rm -f outputs/toy/lora/small.safetensors
	$(RUN)/bin/dsd convert lora outputs/toy/lora/run outputs/toy/lora/small.safetensors --single_file \
	  --dtype bfloat16 --rank 30

# Makes the image encoder in dsd_jax/toy/vision.
toy-vision: $(RUN)/installed
	$(RUN)/bin/dsd train toy_vision --output_dir outputs/toy/vision

test: lint
	$(TEST)/bin/pytest -q -n 2

# Damages files of every format and reads them, for an hour; the tests do so for half a minute.
fuzz: $(TEST)/installed
	$(TEST)/bin/python -m tests.fuzz.run --minutes 60

test-slow: $(TEST)/installed
	$(TEST)/bin/pytest -q -m slow

lint: $(TEST)/installed
	$(TEST)/bin/ruff format --check
	$(TEST)/bin/ruff check
	$(TEST)/bin/mypy

format: $(TEST)/installed
	$(TEST)/bin/ruff check --fix
	$(TEST)/bin/ruff format

# Writes the exact versions of development and CI; UPGRADE=--upgrade takes the newest of each.
lock: $(TOOLS)/installed
	$(TOOLS)/bin/uv pip compile pyproject.toml --quiet --universal --extra dev --python-version 3.11 \
	  --constraint constraints.in --strip-extras --no-annotate --no-header \
	  --no-emit-package setuptools $(UPGRADE) --output-file constraints.txt >/dev/null

# Runs the tests with the lowest version of each direct dependency (except torch).
test-lowest: $(TOOLS)/installed
	$(TOOLS)/bin/uv venv --quiet --clear --python 3.11 $(LOWEST)
	$(TOOLS)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct \
	  --constraint constraints.in --editable '.[dev]'
	$(LOWEST)/bin/pytest -q -n 2

# Lists known vulnerabilities of the locked versions, from the advisory database of Python packages.
audit: $(TOOLS)/installed
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

clean:
	rm -rf $(RUN) $(TEST) $(TOOLS) $(LOWEST) build dist

# An environment is made anew when its requirements change, and always under CI=true.
$(RUN)/installed: EXTRAS =
$(TEST)/installed: EXTRAS = [dev]
$(RUN)/installed $(TEST)/installed: pyproject.toml constraints.txt $(if $(filter true,$(CI)),always)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	    "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --constraint constraints.txt --editable '.$(EXTRAS)'
	@touch $@

$(TOOLS)/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet uv pip-audit
	@touch $@
