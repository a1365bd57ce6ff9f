# make demo               a prompt becomes demo.mp4 and demo.png      (PROMPT="..." and MODEL=folder for others)
# make quick              all tests but the slow ones, under 90 seconds
# make test               the whole suite, on the CPU
# make test-browser       the studio in a browser, which apt-get installs where there is none
# make train-tiny         the whole recipe from nothing, under 15 minutes on a laptop

PROMPT ?= a large red ball bounces on the grass
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two spinning OpenMP threads on a busy machine are many times slower than two sleeping ones. Keeping freed memory, in huge pages, spares
# a CPU the first touch of fresh memory. Both must be set before Python starts.
export OMP_WAIT_POLICY := PASSIVE
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592

.PHONY: demo quick test test-browser lint train-tiny clean

demo: $(VENV)/installed
	$(BIN)/longtake generate "$(PROMPT)" $(if $(MODEL),--model "$(MODEL)") -o demo.mp4 --sheet demo.png

quick: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow'

# Two processes of one thread do more than one of two; a file stays in one process, which makes what its tests share once.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-browser: $(VENV)/installed
	command -v chromium || apt-get install --yes chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_studio_browser.py tests/test_studio_browser_page.py

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

train-tiny: $(VENV)/installed
	$(BIN)/longtake train recipe --preset tiny

# Anew when the pins change, else never.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .[dev]
	$(BIN)/python -c 'from vae.torchvision_ops import write_pth_file; write_pth_file()'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info demo.mp4 demo.png
