# `make run` shows the library at work, `make test` proves it; `make help` tells the rest.
#
# A recipe that is longer than a few lines is a script of its own in tests/make/.

CARGO ?= cargo
# Whatever cargo's own configuration says, so that the recipes know where the binaries are.
export CARGO_TARGET_DIR ?= target
# rustup has just been installed, perhaps, and this terminal does not know of it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

BINARIES := $(patsubst src/bin/%.rs,%,$(wildcard src/bin/*.rs))

# Set on the command line only (not in the environment, where the name may mean something else):
# the Redis that `make run` works on. Without it, one of its own.
ADDRESS =

# Where `make static` puts the binaries, and `make install` takes them from.
STATIC = $(CARGO_TARGET_DIR)/static

PREFIX ?= /usr/local
DESTDIR ?=
BINDIR = $(PREFIX)/bin
LIBEXECDIR = $(PREFIX)/libexec/library-lending
UNITDIR = $(PREFIX)/lib/systemd/system
MANDIR = $(PREFIX)/share/man
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR = $(PREFIX)/share/zsh/site-functions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d

# What is installed, each as SOURCE:DESTINATION:MODE. `make install` and `make uninstall` both go
# through this list, so that what one lays down the other takes away.
MANUALS := $(wildcard src/man/*.[1-8])
COMPLETIONS := $(wildcard src/completions/*)
INSTALLED = \
	$(foreach b,$(BINARIES),$(STATIC)/$b:$(BINDIR)/$b:755) \
	$(foreach u,$(wildcard systemd/*.service systemd/*.timer),$u:$(UNITDIR)/$(notdir $u):644) \
	$(foreach s,$(wildcard systemd/*.sh),$s:$(LIBEXECDIR)/$(notdir $s):755) \
	$(foreach m,$(MANUALS),$m:$(MANDIR)/man$(subst .,,$(suffix $m))/$(notdir $m):644) \
	$(foreach c,$(filter %.bash,$(COMPLETIONS)),$c:$(BASHDIR)/$(basename $(notdir $c)):644) \
	$(foreach c,$(filter %.zsh,$(COMPLETIONS)),$c:$(ZSHDIR)/_$(basename $(notdir $c)):644) \
	$(foreach c,$(filter %.fish,$(COMPLETIONS)),$c:$(FISHDIR)/$(notdir $c):644)
# Not in that list: it belongs to the operator once it is there.
SETTINGS = /etc/default/libraryd

.PHONY: build run demo test faults check static install uninstall bench model clean help cargo redis-server
# Asking for a password, building, starting: in this order, whatever -j says.
.NOTPARALLEL:

build: cargo ## build the binaries to try them out (what make alone does)
	$(CARGO) build --bins

run: $(if $(ADDRESS),,redis-server) build ## a Redis of its own and libraryd, or on ADDRESS=redis://...
	@exec sh tests/make/run.sh "$(CARGO_TARGET_DIR)/debug" '$(ADDRESS)'

demo: redis-server build ## play a day at the library, and tell what each command answers
	@exec sh tests/make/demo.sh "$(CARGO_TARGET_DIR)/debug"

# Tests wait most of their time, for leases that run out and the like: two for each processor.
test: redis-server cargo ## all tests, each on a Redis of its own
	RUST_TEST_THREADS="$${RUST_TEST_THREADS:-$$((2 * $$(nproc)))}" $(CARGO) test --locked --no-fail-fast

faults: redis-server cargo ## a storm of faults and the reckoning; SECONDS=300, SEED=7: the same
	FAULT_SECONDS='$(or $(SECONDS),60)' $(if $(SEED),FAULT_SEED='$(SEED)') \
		$(CARGO) test --locked --test it storm::a_long_storm -- --ignored --nocapture

check: cargo ## formatting, lints and documentation, warnings as errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --quiet

static: cargo ## the release: small static binaries in target/static
	@exec sh tests/make/static.sh '$(STATIC)' $(BINARIES)

# By the environment: what is in a path is no part of the recipe then, quotes for example.
install uninstall: export BINDIR := $(BINDIR)
install uninstall: export LIBEXECDIR := $(LIBEXECDIR)
install uninstall: export DESTDIR := $(DESTDIR)
install uninstall: export SETTINGS := $(SETTINGS)
install uninstall: export INSTALLED := $(INSTALLED)

install: ## put it all under PREFIX (/usr/local), or DESTDIR before that
	@exec sh tests/make/install.sh install

uninstall: ## remove what make install put there
	@exec sh tests/make/install.sh uninstall

bench: redis-server cargo ## measure lending against a floor; QUICK=1: in a minute
	QUICK='$(QUICK)' $(CARGO) bench --locked --bench lending

model: ## explore the protocol's interleavings in a model (needs python3)
	cd tests/protocol && python3 run.py

clean: ## remove what was built; the library in run/ stays
	$(CARGO) clean
	rm -rf '$(STATIC)'

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r target what; do \
		printf '  make %-10s %s\n' "$$target" "$$what"; done

cargo:
	@command -v $(CARGO) >/dev/null || { \
		echo 'There is no Rust toolchain here (cargo is not found). Install one with'; \
		echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"; exit 1; } >&2

redis-server:
	@exec sh tests/make/redis-server.sh
