# A thin door to .ci/make.py, which holds the logic. `make help` lists the targets.
PYTHON ?= python3
TARGETS := help setup test test-all data book pdf coursework grade lock environment clean

# `make book EPSILN=3` must not quietly build the book at another epsilon.
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
known := EPSILON DATASET SEED PROFILE SUBMISSIONS STUDENTS SECRET PRIVATE TO UPGRADE PYTHON
unknown := $(filter-out $(known) MAKEFLAGS,$(given))
$(if $(unknown),$(error unknown setting $(unknown); known: $(known)))

.PHONY: $(TARGETS)
$(TARGETS):
	@command -v "$(PYTHON)" >/dev/null || { echo "dpldm needs Python 3.11 to 3.13 and found no $(PYTHON); install it with: sudo apt install python3 python3-venv (Debian, Ubuntu), brew install python@3.12 (macOS)" >&2; exit 127; }
	@"$(PYTHON)" .ci/make.py $@
