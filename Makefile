# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export HF_HUB_OFFLINE := 1
.PHONY: install demo test oldest bench lint app app-test docs sbom release clean

install: $(STAMP)

# Threads that wait should spin a little, but not starve each other when the machine is busy.
demo: export GOMP_SPINCOUNT := 10000
demo: $(STAMP)
	$(BIN)/faap demo

# Two test processes on two cores: one thread each, and who is done takes over from the other.
test: export OMP_NUM_THREADS := 1
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The tests of the package alone, with the oldest versions that pyproject.toml allows (torch brings CUDA: four gigabytes). Left out is what
# these versions themselves cannot do: transformers' own processor without torchvision, two of its models as made for the tests (one finds
# the same everywhere, one is off by 1.5e-5), and torch's export of a Conditional DETR, which is refused.
OLDER := test_deploy.py::test_three_lines_put_a_generator_into_a_pipeline_of_transformers \
	test_export.py::test_a_detector_behind_it_goes_into_the_same_file[conditional_softmax-torch] \
	detectors/test_families.py::test_outputs_are_the_librarys[deformable_detr_two_stage] \
	detectors/test_families.py::test_outputs_are_the_librarys[rt_detr_v2]
oldest: export OMP_NUM_THREADS := 1
oldest: build/oldest/.installed
	build/oldest/bin/python -m pytest -n 2 --dist worksteal --ignore tests/test_docs.py --ignore tests/test_notebooks.py \
		--ignore tests/test_tools.py $(OLDER:%=--deselect 'tests/%')

build/oldest/.installed: pyproject.toml
	test -x build/oldest/bin/python || $(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet uv
	build/oldest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev --python build/oldest/bin/python \
		-o build/oldest/versions.txt pyproject.toml
	build/oldest/bin/uv pip install --quiet --python build/oldest/bin/python -r build/oldest/versions.txt
	build/oldest/bin/python -m pip install --quiet --no-deps -e .
	touch $@

bench: $(STAMP)
	$(BIN)/faap bench

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# faap app, in an environment of its own: gradio takes no newer Pillow. ARGS are its flags.
app: build/app/.installed
	build/app/bin/faap app $(ARGS)

app-test: build/app/.installed
	build/app/bin/python -m pytest tests/test_app.py tests/test_app_browser.py \
		tests/promenade/test_build.py::test_val_and_test_are_what_they_always_were

build/app/.installed: pyproject.toml constraints.txt constraints-app.txt
	test -x build/app/bin/python || $(PYTHON) -m venv build/app
	grep -v '^pillow==' constraints.txt > build/app/constraints.txt
	build/app/bin/python -m pip install --quiet -c build/app/constraints.txt torch
	build/app/bin/python -m pip install --quiet -c build/app/constraints.txt -c constraints-app.txt \
		-e '.[app]' playwright pytest
	touch $@

# The site in build/site, made in an environment of its own: the pages need nothing of the package but its sources.
docs: build/docs/.installed
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict

build/docs/.installed: docs/requirements.txt
	test -x build/docs/bin/python || $(PYTHON) -m venv build/docs
	build/docs/bin/python -m pip install --quiet -r docs/requirements.txt
	touch $@

# What a user gets with the package, in an environment of its own, and as a CycloneDX list in dist/faap.cdx.json.
sbom:
	rm -rf build/sbom
	$(PYTHON) -m venv build/sbom/package
	$(PYTHON) -m venv build/sbom/tool
	build/sbom/package/bin/python -m pip install --quiet -c constraints.txt torch
	build/sbom/package/bin/python -m pip install --quiet -c constraints.txt .
	build/sbom/package/bin/python -m pip uninstall --quiet --yes pip setuptools
	build/sbom/tool/bin/python -m pip install --quiet cyclonedx-bom==7.5.0
	mkdir -p dist
	build/sbom/tool/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
		--of JSON -o dist/faap.cdx.json build/sbom/package/bin/python

# A wheel that is whole, small and of this version, and works where nothing of the repository is.
release: $(STAMP) sbom
	rm -rf dist/*.whl build/lib build/release
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .
	$(BIN)/python tools/check_release.py dist/*.whl
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet -c constraints.txt torch
	build/release/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd build/release && bin/faap --version && bin/faap recipes && bin/faap audit promenade

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

# torch first and alone: a bare dependency on it would pull the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
