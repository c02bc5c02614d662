# moonsand: build, test, install. `make help` lists what there is.
#
# The module is built once per Lua, from one source, into $(B)/5.4 and $(B)/jit, each laid out as
# package.cpath wants it: $(B)/5.4/moonsand/core.so, with the agent beside it.

VERSION := $(shell sed -n 's/^return "\(.*\)"$$/\1/p' lua/moonsand/version.lua)

# ---------------------------------------------------------------- what may be set from outside

B = build
PREFIX = /usr/local
DESTDIR =
ifeq ($(origin CC),default)
CC = gcc
endif
CLANG = clang
CFLAGS ?= -O2 -g
LDFLAGS ?=
LIBFLAG = -shared
SPEC ?=# make test SPEC=spec/foo_spec.lua: only this
LUA ?=# make test LUA=5.4 (or jit): only this
FUZZ_SECONDS = 30

HARDENING = -fstack-protector-strong \
  $(if $(filter -O0,$(CFLAGS)),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
# The agent runs where there is no library to load, and is forked for every sandbox: one static
# file, small, without relocations of its own.
AGENT_CFLAGS = -fno-pie -ffunction-sections -fdata-sections
AGENT_LDFLAGS = -static -no-pie -Wl,--gc-sections
AGENT_EXTRA =

# Directories of Lua headers, as -I flags. `pkg-config` says, else Debian's usual place.
lua-headers = $(or $(shell pkg-config --cflags-only-I --keep-system-cflags $(1) 2>/dev/null), \
  $(patsubst %/lua.h,-I%,$(wildcard /usr/include/$(2)/lua.h)))
INC_5.4 := $(strip $(call lua-headers,lua5.4,lua5.4))
INC_jit := $(strip $(call lua-headers,luajit,luajit-2.1))
# LuaRocks gives its own; for 5.1 that is the old Lua, whose API is less than LuaJIT's.
INC_rock = $(or $(if $(shell grep -s 'LUA_VERSION_NUM.*501' $(LUA_INCDIR)/lua.h),$(INC_jit)), \
  -I$(LUA_INCDIR))
VARIANTS = $(strip $(foreach v,5.4 jit,$(if $(INC_$v),$v)))

# ---------------------------------------------------------------- flags

WARNINGS = -Wall -Wextra -Wshadow -Wstrict-prototypes -Werror=implicit-function-declaration
ifneq ($(filter 1 true,$(CI) $(WERROR)),)
WARNINGS += -Werror
endif
DEFINES = -D_GNU_SOURCE -DMS_VERSION='"$(VERSION)"' -Isrc
COMPILE = $(CC) -std=c11 $(WARNINGS) $(CFLAGS) $(HARDENING) $(DEFINES)
MODULE_FLAGS = -fPIC -fvisibility=hidden
LINK_FLAGS = $(LDFLAGS) -Wl,-z,relro,-z,now

MODULE_SRC := $(wildcard src/*.c)
# The second module, moonsand.net, stands on two libraries. Without them the core is built alone.
NET_SRC := $(wildcard src/net/*.c) src/buffer.c
NET_LIBS = -lcurl -lwslay
NET_LACKS := $(strip $(foreach h,curl/curl.h wslay/wslay.h,$(if $(shell \
  echo '\#include <$h>' | $(CC) $(CFLAGS) -E -x c - >/dev/null 2>&1 && echo yes),,$h)))
MODULES = core $(if $(NET_LACKS),,net)
# What knows no Lua is the agent's too; what it does not call is dropped by the linker.
AGENT_SRC := $(wildcard src/agent/*.c) $(shell grep -L lua_State src/*.c 2>/dev/null)
HEADERS := $(wildcard src/*.h src/agent/*.h src/net/*.h)
SUPPORT := $(patsubst spec/support/%.c,$(B)/support/%,$(wildcard spec/support/*.c))
BENCH := $(patsubst bench/%.c,$(B)/bench/%,$(filter-out $(if $(NET_LACKS),bench/net_%), \
  $(wildcard bench/*.c)))
FUZZ := $(patsubst fuzz/%.c,$(B)/fuzz/%,$(wildcard fuzz/*.c))
C_FILES := $(wildcard src/*.[ch] src/agent/*.[ch] src/net/*.[ch] spec/support/*.[ch] \
  fuzz/*.[ch] bench/*.[ch] examples/embed/*.[ch])
SCRIPTS := $(wildcard tools/install-deps tools/check-build tools/check-apparmor tools/run-tests \
  .ci/run examples/openresty/run.sh share/bash-completion/moonsand)
AGENT_OBJ := $(patsubst src/%.c,$(B)/obj/agent/%.o,$(AGENT_SRC))
DEPFILES := $(wildcard $(B)/obj/*/*.d $(B)/obj/*/*/*.d)

say = @printf '  %-6s %s\n'
Q = $(if $(filter 1,$(V)),,@)

# ---------------------------------------------------------------- build

.PHONY: all modules toolchain FORCE support deps demo gateway embed test matrix gcstress asan valgrind fuzz \
  fuzz-run bench bench-run lint lint-run lint-lua lint-format lint-sh lint-c lint-apparmor fmt pages \
  install install-modules install-profile uninstall clean help

all: modules ## build the module for each Lua whose headers are there, and the agent

modules: $(foreach v,$(VARIANTS),$(MODULES:%=$(B)/$v/moonsand/%.so) $(B)/$v/moonsand/agent) | toolchain
	@:

# Says by name what is missing, before anything is compiled.
toolchain:
	@CC='$(CC)' VARIANTS='$(VARIANTS)' AGENT_LDFLAGS='$(AGENT_LDFLAGS)' NET_LACKS='$(NET_LACKS)' \
	  sh tools/check-build

# Other flags, another version, a file more or less: everything anew.
FLAGS = $(COMPILE) $(MODULE_FLAGS) $(AGENT_CFLAGS) $(AGENT_LDFLAGS) $(LINK_FLAGS) $(LIBFLAG) \
  $(foreach v,$(VARIANTS),$(INC_$v)) $(MODULE_SRC) $(NET_SRC) $(AGENT_SRC)
$(B)/flags: FORCE | toolchain
	@mkdir -p $(@D)
	@flags='$(subst ','\'',$(FLAGS))'; echo "$$flags" | cmp -s - $@ || echo "$$flags" >$@
FORCE:

define variant
$(B)/obj/$(1)/%.o: src/%.c $(B)/flags
	$$(say) CC '$$< ($(1))'
	@mkdir -p $$(@D)
	$$(Q)$$(COMPILE) $$(MODULE_FLAGS) $$(INC_$(1)) -MMD -MP -c $$< -o $$@

$(B)/$(1)/moonsand/core.so: $(patsubst src/%.c,$(B)/obj/$(1)/%.o,$(MODULE_SRC))
	$$(say) LINK $$@
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(LIBFLAG) $$(CFLAGS) $$(LINK_FLAGS) $$^ -o $$@

# Never unloaded: a thread of curl's may still ask a name server when the Lua state is closed.
$(B)/$(1)/moonsand/net.so: $(patsubst src/%.c,$(B)/obj/$(1)/%.o,$(NET_SRC))
	$$(say) LINK $$@
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(LIBFLAG) $$(CFLAGS) $$(LINK_FLAGS) -Wl,-z,nodelete $$^ $(NET_LIBS) -o $$@

$(B)/$(1)/moonsand/agent: $(B)/moonsand-agent
	@mkdir -p $$(@D)
	$$(Q)install -m 755 $$< $$@
endef
$(foreach v,$(VARIANTS),$(eval $(call variant,$v)))

$(B)/obj/agent/%.o: src/%.c $(B)/flags
	$(say) CC '$< (agent)'
	@mkdir -p $(@D)
	$(Q)$(COMPILE) $(AGENT_CFLAGS) -MMD -MP -c $< -o $@

$(B)/moonsand-agent: $(AGENT_OBJ) $(AGENT_EXTRA)
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(AGENT_CFLAGS) $(AGENT_LDFLAGS) $(LINK_FLAGS) $^ -o $@

-include $(DEPFILES)

# Small C programs for specs, fuzzing and benchmarks. Each names what it is linked with, in its
# first lines: /* links: src/wire.c -lseccomp */
links = $(shell sed -n '1,20s|^[/ ]\* *links: *\([^*]*\).*|\1|p' $<)
$(B)/support/% $(B)/bench/%: COMPILE_PROGRAM = $(COMPILE) $(firstword $(INC_5.4) $(INC_jit))
$(B)/fuzz/%: COMPILE_PROGRAM = $(CLANG) -std=c11 $(WARNINGS) -O1 -g $(DEFINES) $(INC_5.4) \
  -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined
define program
	$(say) CC $<
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)$(COMPILE_PROGRAM) $< $(filter-out -%,$(links)) $(LDFLAGS) $(filter -%,$(links)) -o $@
endef
$(B)/support/%: spec/support/%.c $(MODULE_SRC) $(NET_SRC) $(AGENT_SRC) $(HEADERS) $(B)/flags
	$(program)
$(B)/bench/%: bench/%.c $(MODULE_SRC) $(NET_SRC) $(AGENT_SRC) $(HEADERS) $(B)/flags
	$(program)
$(B)/fuzz/%: fuzz/%.c $(MODULE_SRC) $(NET_SRC) $(AGENT_SRC) $(HEADERS)
	$(program)

support: $(SUPPORT)
	@:

# ---------------------------------------------------------------- run

lua-env = LUA_PATH='lua/?.lua;lua/?/init.lua;;' LUA_CPATH='$(B)/5.4/?.so;;'
run-tests = B='$(B)' LUA='$(LUA)' sh tools/run-tests
# A second make, because what the packages bring is looked for when a Makefile is read.
deps = @sh tools/install-deps
# A check that does not compile does not stop the suite: it is missed, and counted, when it is run.
build-suite = $(MAKE) --no-print-directory all $(1) && \
  { $(MAKE) --no-print-directory -k support $(1) || :; }

deps: ## install what building and the demo need (Debian packages)
	$(deps) demo

demo: ## install what is missing, build, and run examples/quickstart.lua
	$(deps) demo
	@$(MAKE) --no-print-directory all
	@$(lua-env) lua5.4 examples/quickstart.lua

gateway: all ## start examples/openresty at http://127.0.0.1:8080
	@sh examples/openresty/run.sh

embed: all ## build and play the game of examples/embed (ARGS='--headless --seconds 5')
	@$(MAKE) --no-print-directory -C examples/embed B='$(abspath $(B))' run

test: ## install what is missing, build, and run the whole suite (SPEC=file, LUA=5.4|jit narrow it)
	$(deps) test
	+@$(build-suite)
	@$(run-tests) $(SPEC)

matrix: ## the same, closed by a table: suites down, Luas across
	$(deps) test
	+@$(build-suite)
	@$(run-tests) --matrix $(SPEC)

gcstress: ## the suite with a collector that runs all the time
	@MOONSAND_GCSTRESS=1 TEST_TIMEOUT=1200 $(MAKE) --no-print-directory test

SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=undefined
asan: ## the suite with module and agent under AddressSanitizer and UBSan
	$(deps) test
	+@$(call build-suite,B=build/asan HARDENING= MODULE_FLAGS=-fPIC \
	  CFLAGS='-O1 -g -fno-omit-frame-pointer $(SANITIZE)' \
	  AGENT_CFLAGS= AGENT_LDFLAGS= AGENT_EXTRA=tools/asan_options.c)
	@B=build/asan LUA='$(LUA)' TEST_TIMEOUT=900 ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=8 \
	  TEST_PRELOAD="$$($(CC) -print-file-name=libasan.so)" sh tools/run-tests $(SPEC)

valgrind: ## the suite on Lua 5.4 under Valgrind
	$(deps) test valgrind
	+@$(build-suite)
	@B='$(B)' LUA=5.4 TEST_TIMEOUT=600 MOONSAND_VALGRIND=1 \
	  TEST_WRAPPER='valgrind -q --error-exitcode=99' sh tools/run-tests $(SPEC)

fuzz: ## run each fuzz target for FUZZ_SECONDS=30
	$(deps) fuzz
	@$(MAKE) --no-print-directory fuzz-run

fuzz-run: $(FUZZ)
	@for target in $(FUZZ); do \
	  name=$${target##*/}; corpus=$(B)/fuzz/corpus/$$name; mkdir -p $$corpus; \
	  seeds=; [ ! -d fuzz/corpus/$$name ] || seeds=fuzz/corpus/$$name; \
	  echo "fuzz: $$name, $(FUZZ_SECONDS) s"; \
	  $$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix=$(B)/fuzz/$$name- $$corpus $$seeds || exit 1; \
	done

bench: ## measure, and compare with the floor and the alternatives (bench/run.lua)
	$(deps) bench
	@$(MAKE) --no-print-directory bench-run

bench-run: all $(BENCH)
	@$(lua-env) lua5.4 bench/run.lua

# ---------------------------------------------------------------- look over

lint: ## luacheck, clang-format, shellcheck, and all C as errors by gcc and clang
	$(deps) lint
	@$(MAKE) --no-print-directory -k lint-run

lint-run: lint-lua lint-format lint-sh lint-c lint-apparmor

lint-lua:
	luacheck --quiet --no-cache .
lint-format:
	$(if $(C_FILES),clang-format --dry-run -Werror $(C_FILES))
lint-sh:
	shellcheck $(SCRIPTS)
STRICT = -std=c11 $(WARNINGS) -Werror $(DEFINES) -fsyntax-only
lint-c:
	$(if $(MODULE_SRC),gcc -O2 $(STRICT) $(INC_5.4) $(MODULE_SRC) $(NET_SRC))
	$(if $(MODULE_SRC),$(CLANG) $(STRICT) $(INC_5.4) $(MODULE_SRC) $(NET_SRC))
	$(if $(MODULE_SRC),$(CLANG) $(STRICT) $(INC_jit) $(MODULE_SRC) $(NET_SRC))
	$(if $(AGENT_SRC),gcc -O2 $(STRICT) $(AGENT_SRC))
	$(if $(AGENT_SRC),$(CLANG) $(STRICT) $(AGENT_SRC))

lint-apparmor:
	sh tools/check-apparmor

fmt: ## format the C sources
	$(if $(C_FILES),clang-format -i $(C_FILES))

# A page is written when it was made whole.
define make-page
LUA_PATH='lua/?.lua;;' lua5.4 $1 >$2.new
@mv $2.new $2
endef

pages: ## make the man page, the completion and Neovim's help anew, of their sources
	$(call make-page,tools/manpage,doc/moonsand.1)
	$(call make-page,tools/completion,share/bash-completion/moonsand)
	$(call make-page,tools/vimdoc,doc/moonsand.txt)

# ---------------------------------------------------------------- install

# Each Lua's own directories; LUADIR and LIBDIR replace them (for one variant, as LuaRocks does).
API_5.4 = 5.4
API_jit = 5.1
lua-dir = $(DESTDIR)$(or $(LUADIR),$(PREFIX)/share/lua/$(API_$(1)))
lib-dir = $(DESTDIR)$(or $(LIBDIR),$(PREFIX)/lib/lua/$(API_$(1)))
doc-dir = $(DESTDIR)$(PREFIX)/share/doc/moonsand
tool = $(DESTDIR)$(PREFIX)/bin/moonsand
man-page = $(DESTDIR)$(PREFIX)/share/man/man1/moonsand.1
completion = $(DESTDIR)$(PREFIX)/share/bash-completion/completions/moonsand
profile = $(DESTDIR)/etc/apparmor.d/moonsand
# What lets the agent make user namespaces where AppArmor would not. auto: where AppArmor is there,
# knows such rules, and may be told; yes (for packages) and no decide.
APPARMOR = auto
LUA_FILES := $(patsubst lua/%,%,$(shell find lua -name '*.lua' 2>/dev/null | sort))

define install-variant
install -d '$(call lib-dir,$(1))/moonsand'
install -m 755 $(MODULES:%=$(B)/$(1)/moonsand/%.so) $(B)/$(1)/moonsand/agent \
  '$(call lib-dir,$(1))/moonsand/'
for file in $(LUA_FILES); do \
  install -D -m 644 "lua/$$file" '$(call lua-dir,$(1))'/"$$file" || exit 1; done

endef

install: install-modules install-profile ## install under PREFIX=/usr/local (and DESTDIR=)
	install -d '$(doc-dir)'
	cp -R CHANGELOG.md LICENSE $(wildcard README.md SECURITY.md doc) '$(doc-dir)/'
	install -D -m 755 bin/moonsand '$(tool)'
	$(if $(INC_5.4),,sed -i '1s/lua5\.4/luajit/' '$(tool)')
	install -D -m 644 doc/moonsand.1 '$(man-page)'
	install -D -m 644 share/bash-completion/moonsand '$(completion)'
install-modules: all
	$(foreach v,$(VARIANTS),$(call install-variant,$v))

install-profile:
	@case '$(APPARMOR)' in \
	yes) ;; \
	auto) [ -w '$(dir $(profile))' ] && PATH="$$PATH:/usr/sbin:/sbin" \
	  apparmor_parser -QKq etc/apparmor.d/moonsand >/dev/null 2>&1 || exit 0 ;; \
	*) exit 0 ;; \
	esac; \
	install -d '$(dir $(profile))' && \
	sed 's|^@{moonsand_agent} =.*|@{moonsand_agent} =$(foreach v,$(VARIANTS),"$(patsubst $(DESTDIR)%,%,$(call lib-dir,$v))/moonsand/agent")|' \
	  etc/apparmor.d/moonsand >'$(profile)' && \
	echo '  AppArmor is to read the new profile: sudo apparmor_parser -r /etc/apparmor.d/moonsand'

uninstall: ## remove what install put there (same PREFIX)
	$(foreach v,5.4 jit,rm -rf '$(call lib-dir,$v)/moonsand' '$(call lua-dir,$v)/moonsand';)
	rm -rf '$(doc-dir)'
	rm -f '$(tool)' '$(man-page)' '$(completion)' '$(profile)'

clean: ## remove what was built
	rm -rf $(B)

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
	  while IFS='|' read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done
