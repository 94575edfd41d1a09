# Everything starts here: `make help` lists the targets.
PYTHON ?= python3
BOOK ?= .
PORT ?= 8000
MUTANTS ?= 150
BIN := .venv/bin
READY := .venv/.ready
# One process for each core, and one thread for each process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: help book chapters site pdf serve lab inspect notebooks test test-site mutants colab lint format clean
.DEFAULT_GOAL := help
.NOTPARALLEL: # the chapters run before the site is rendered from their outputs

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

# The environment is made anew when the pins or the package's metadata change, and reused otherwise.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("expected Python 3.11 or newer, got " + sys.version)'
	@test ! -L .venv || { echo ".venv is a link: expected it to be ready, or to be a folder of this project" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

book: chapters site ## execute every chapter and render the site

chapters: $(READY) ## execute every chapter that has changed, by nbmake
	$(BIN)/python tools/execute_chapters.py "$(BOOK)"

site: $(READY) ## render the site
	@rm -rf "$(BOOK)/_build/html"
	$(BIN)/jupyter-book build "$(BOOK)" -W -n --keep-going --all
	@echo "The book is at $(BOOK)/_build/html/index.html"

pdf: book ## print the whole book to one file: _build/kernel-regimes.pdf (needs Chromium)
	$(BIN)/python tools/make_pdf.py

serve: ## serve the rendered site on loopback (PORT=8000)
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lab: $(READY) ## open the chapters in JupyterLab
	$(BIN)/jupyter lab book

inspect: $(READY) ## open every page of the built site in Chromium and take pictures
	$(BIN)/python tools/inspect_site.py

notebooks: book ## write every chapter as a plain notebook to notebooks/, as the site offers it
	rm -rf notebooks
	cp -R "$(BOOK)/_build/html/notebooks" notebooks

test: $(READY) ## run the unit tests and every chapter
	$(PYTEST) tests --ignore tests/site
	@$(MAKE) --no-print-directory chapters

test-site: $(READY) ## test the built site in Chromium, and the printed book
	$(PYTEST) tests/site

mutants: $(READY) ## change the code at random, and count what the tests notice (MUTANTS=150, or all)
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutate.py $(MUTANTS)

colab: notebooks ## run every notebook as in Colab: newest releases, the package from git
	$(BIN)/python tools/try_in_colab.py

lint: $(READY) ## check format and style of the package, tests, tools and chapters, and the types of the package
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/lint_chapters.py

format: $(READY) ## format the package, tests, tools and chapters in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/lint_chapters.py --fix

clean: ## remove what was built: the site, the notebooks, the environment
	rm -rf _build notebooks mutants .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
