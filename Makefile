# SPDX-License-Identifier: BSD-2-Clause
# A thin front: the build itself is meson.build, the checks are scripts/check.
PREFIX ?= /usr/local
B = build
MESON_FLAGS ?=

# When one of these folders changes, the lists of files are made anew.
FOLDERS := $(wildcard tests/*/ docs/man/ bench/)

.PHONY: all check quick demo bench install soak fuzz format tidy clean deps \
	help

all: $(B)/configured
	@ninja -C $(B) program

help:
	@echo 'make          build/rewind'
	@echo 'make demo     a real guest ruins its disk and boots clean again'
	@echo 'make check    everything: tests, sanitizers, fuzz, style (12 min)'
	@echo 'make quick    the tests of the plain build only'
	@echo 'make bench    measure against other servers'
	@echo 'make install  to PREFIX (/usr/local), below DESTDIR'
	@echo 'make soak     seeded random tests until ended'
	@echo 'make fuzz     all fuzz targets, SECONDS (300) each'
	@echo 'make format   clang-format in place; make tidy: clang-tidy'
	@echo 'make deps     install what a build needs'

$(B)/configured: $(FOLDERS)
	@if [ -f $(B)/build.ninja ]; then \
	    meson setup --reconfigure $(B) >/dev/null; \
	else \
	    scripts/install-deps build && \
	    meson setup $(B) --prefix=$(PREFIX) $(MESON_FLAGS); \
	fi
	@touch $@

check:
	@scripts/install-deps check
	@scripts/check

quick: all
	@scripts/install-deps check
	@meson setup --reconfigure $(B) -Dunit_tests=enabled >/dev/null
	meson test -C $(B) --print-errorlogs

demo: all
	@scripts/install-deps demo
	@scripts/demo.sh

bench: all
	@scripts/install-deps bench
	@bench/run

install: all
	@meson setup --reconfigure $(B) --prefix=$(PREFIX) >/dev/null
	@meson install -C $(B) --no-rebuild

soak: all
	@scripts/soak

SECONDS ?= 300
fuzz:
	@scripts/install-deps check
	@scripts/fuzz $(SECONDS)

format:
	@scripts/style reformat

tidy: all
	@scripts/style tidy

deps:
	@scripts/install-deps build

clean:
	rm -rf $(B)
