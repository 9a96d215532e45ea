# Codius Host: the daily commands. `make help` lists them.

PYTHON   := /usr/bin/python3
VENV     := .venv
BIN      := $(VENV)/bin
PREFIX   := /opt/codius-host
QUIETLY  := --quiet --disable-pip-version-check
SUDO     := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# From the distribution. python3-nftables exists only there, so the venv sees the system's packages.
# gcc and the headers compile the front door's data path (setup.py).
PACKAGES       := gcc libc6-dev python3-dev podman runc crun catatonit nftables python3-nftables iproute2 python3-venv busybox-static
TEST_PACKAGES  := curl openssl docker-registry bind9-dnsutils conntrack iptables ufw firewalld dbus-daemon knot slowhttptest qemu-user chromium
# The original client's. A Node.js that is not the distribution's brings npm along, and conflicts with this one.
TEST_PACKAGES  += $(if $(shell command -v npm),,nodejs npm)
# Only for measurements: other servers and load generators.
BENCH_PACKAGES := dnsperf nginx-light haproxy caddy wrk
# Debian starts and enables what it installs. A firewall that comes up by itself locks its owner out.
TEST_SERVICES  := docker-registry ufw firewalld knot
BENCH_SERVICES := nginx haproxy caddy

.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo picture test check fmt unit system fuzz bench docs install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## a whole host on loopback, from upload to expiry; KEEP=1 leaves it running
	@$(SUDO) $(BIN)/python -m tests.demo $(if $(KEEP),--keep)

picture: setup ## run the demo, and make docs/demo.svg of what it printed
	@$(SUDO) $(BIN)/python -m tests.demo --svg docs/demo.svg

test: setup-test ## unit, integration and system tests (the last need root)
	@$(BIN)/pytest

check: setup ## formatting, lints, types, layers
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

fmt: setup ## format and mend what can be mended
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

unit: setup ## only the quick tests
	@$(BIN)/pytest -m "not system"

system: setup-test ## only the tests with real podman and a real kernel
	@$(BIN)/pytest -m system

fuzz: setup ## hostile bytes for longer: FUZZ_EXAMPLES=100000 takes a quarter of an hour
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),100000) $(BIN)/pytest --timeout=3600 tests/integration/test_http_fuzz.py

bench: setup-bench ## measure, and write docs/benchmarks.md
	@$(BIN)/python -m tests.bench

docs: setup ## write again what is generated from the code
	@$(BIN)/python -m tests.docs

setup: $(VENV)/.compiled ## install what is missing; costs nothing when nothing is

setup-test: setup
	@$(call subdue,$(TEST_SERVICES)); $(call install,$(TEST_PACKAGES))

setup-bench: setup-test
	@$(call subdue,$(BENCH_SERVICES)); $(call install,$(BENCH_PACKAGES))

$(VENV)/.ready: pyproject.toml Makefile
	@$(call install,$(PACKAGES))
	@echo "setup: making $(VENV) on $$($(PYTHON) --version) with the packages of pyproject.toml"
	@$(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/python -m pip install $(QUIETLY) --editable '.[dev]' \
		|| { echo "setup: pip failed; its own lines are above. Is the package index reachable?"; exit 1; }
	@touch $@

# In place, so that what is tested is what runs: docs/adr/019-a-compiled-data-path.md.
$(VENV)/.compiled: $(VENV)/.ready setup.py $(wildcard proxy/codius_proxy/*.py)
	@echo "setup: compiling the front door's data path"
	@rm -f proxy/codius_proxy/*.so
	@$(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/temp
	@touch $@

# Missing packages are named, then installed; with none missing nothing is asked of apt.
# RUNLEVEL=1 keeps packages that bring a service from starting it where there is no systemd.
define install
missing=""; for package in $(1); do \
	dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$package"; \
done; \
if [ -n "$$missing" ]; then \
	echo "setup: installing from the distribution:$$missing"; \
	command -v apt-get >/dev/null || { echo "setup: no apt-get here; install these by hand:$$missing"; exit 1; }; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -qq --no-install-recommends $$missing >/dev/null || exit 1; \
fi
endef

# Services of packages that are still missing: masked while these are installed, disabled afterwards.
# RUNLEVEL alone is no help where systemd runs.
define subdue
units=/etc/systemd/system; subdued=""; \
trap 'for service in $$subdued; do \
	$(SUDO) rm -f $$units/$$service.service; $(SUDO) systemctl --root=/ --quiet disable $$service; \
done' EXIT; \
for service in $(1); do \
	test -e /lib/systemd/system/$$service.service -o -e $$units/$$service.service && continue; \
	$(SUDO) ln -s /dev/null $$units/$$service.service; subdued="$$subdued $$service"; \
done
endef

# Compiled by whoever calls, so that nothing of root's is left here. The second install is for those who had
# this version already: pip takes it for the same.
install: ## as services: /usr/local/bin/codiusd, units, users, /etc/codius/codius.env
	@$(call install,$(PACKAGES))
	@echo "install: the command, in $(PREFIX)"
	@$(SUDO) $(PYTHON) -m venv --system-site-packages $(PREFIX)
	@rm -rf build/wheel build/lib.*  # setuptools packs whatever is there, also modules that are gone
	@$(PREFIX)/bin/python -m pip wheel $(QUIETLY) --no-deps --wheel-dir build/wheel .
	@$(SUDO) $(PREFIX)/bin/python -m pip install $(QUIETLY) build/wheel/*.whl
	@$(SUDO) $(PREFIX)/bin/python -m pip install $(QUIETLY) --no-deps --force-reinstall build/wheel/*.whl
	@$(SUDO) ln -sf $(PREFIX)/bin/codiusd /usr/local/bin/codiusd
	@echo "install: units in /etc/systemd/system, settings in /etc/codius/codius.env"
	@$(SUDO) install -d /etc/systemd/system /usr/lib/sysusers.d /usr/lib/tmpfiles.d /etc/codius
	@$(SUDO) install -m 644 systemd/*.service systemd/*.target /etc/systemd/system/
	@$(SUDO) install -m 644 systemd/codius.sysusers.conf /usr/lib/sysusers.d/codius.conf
	@$(SUDO) install -m 644 systemd/codius.tmpfiles.conf /usr/lib/tmpfiles.d/codius.conf
	@test -e /etc/codius/codius.env || $(SUDO) install -m 640 .env.example /etc/codius/codius.env
	@if [ -d /run/systemd/system ]; then \
		$(SUDO) systemd-sysusers && $(SUDO) systemd-tmpfiles --create codius.conf && $(SUDO) systemctl daemon-reload; \
	else echo "install: no systemd is running here; the units are ready for when one does"; fi
	@echo "install: next: edit /etc/codius/codius.env; codiusd doctor; systemctl enable --now codius.target"

clean: ## remove what setup and the tests made here
	rm -rf $(VENV) build *.egg-info proxy/codius_proxy/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
