# Installs what `cargo build --release` has built, for systems without the Debian package (cargo deb).
#
#   make                                     build
#   make install                             into /usr/local, configuration into /etc
#   make install PREFIX=/usr DESTDIR=/stage  for packagers
#   make install SYSCONFDIR=/usr/local/etc   configuration elsewhere
#   make uninstall                           with the same variables; what is in SYSCONFDIR stays
#
# The configuration file is left alone if it is there. The service needs its user, and a look by systemd:
#
#   systemd-sysusers /usr/local/lib/sysusers.d/wshd.conf && systemctl daemon-reload

PREFIX = /usr/local
SYSCONFDIR = /etc
DESTDIR =
CARGO = cargo
# Where the program and its handlers were built.
BUILT = $(or $(CARGO_TARGET_DIR),target)/release

ROOT = $(DESTDIR)$(PREFIX)
CONFIGURATION = $(DESTDIR)$(SYSCONFDIR)
# Files that name /usr or /etc name what was chosen instead.
PREFIXED = sed -e 's|^prefix=/usr$$|prefix=$(PREFIX)|' -e 's|/usr/bin/|$(PREFIX)/bin/|' \
	-e 's|/usr/lib/wshd/|$(PREFIX)/lib/wshd/|' -e 's|/etc/wshd/|$(SYSCONFDIR)/wshd/|g'

# What is installed below the prefix: source=place.
FILES = \
	include/ws_handler.h=include/ws_handler.h \
	include/ws_handler.hpp=include/ws_handler.hpp \
	include/ws_handler_test.h=include/ws_handler_test.h \
	$(foreach section,1 3 5 7 8,$(foreach page,$(wildcard man/*.$(section)),\
		$(page)=share/man/man$(section)/$(notdir $(page)))) \
	LICENSE=share/doc/wshd/copyright \
	README.md=share/doc/wshd/README.md \
	CHANGELOG.md=share/doc/wshd/CHANGELOG.md \
	plugins/echo_wsh.c=share/doc/wshd/examples/echo_wsh.c \
	packaging/examples/echo.test=share/doc/wshd/examples/echo.test \
	packaging/examples/CMakeLists.txt=share/doc/wshd/examples/CMakeLists.txt \
	packaging/examples/meson.build=share/doc/wshd/examples/meson.build \
	packaging/examples/wshd.socket=share/doc/wshd/examples/wshd.socket \
	packaging/examples/Containerfile=share/doc/wshd/examples/Containerfile \
	packaging/examples/grafana.json=share/doc/wshd/examples/grafana.json \
	packaging/examples/prometheus-rules.yml=share/doc/wshd/examples/prometheus-rules.yml \
	packaging/completions/wshd.bash=share/bash-completion/completions/wshd \
	packaging/completions/_wshd=share/zsh/vendor-completions/_wshd \
	packaging/completions/wshd.fish=share/fish/vendor_completions.d/wshd.fish \
	packaging/wshd.sysusers=lib/sysusers.d/wshd.conf \
	packaging/wshd.tmpfile=lib/tmpfiles.d/wshd.conf \
	$(foreach file,Cargo.toml $(CRATE),include/rust/$(file)=share/wshd/rust/$(file))
# The crate for handlers in Rust, which builds without a registry.
CRATE = $(patsubst include/rust/%,%,$(wildcard include/rust/src/*.rs))
# The same with the prefix in it.
PREFIXED_FILES = \
	packaging/wshd.pc=lib/pkgconfig/wshd.pc \
	packaging/wshd.service=lib/systemd/system/wshd.service \
	packaging/wshd@.service=lib/systemd/system/wshd@.service
BUILT_FILES = bin/wshd lib/wshd/handlers/echo_wsh.so

source = $(firstword $(subst =, ,$(1)))
place = $(lastword $(subst =, ,$(1)))

.PHONY: all install uninstall deb

all:
	$(CARGO) build --release --package wshd

deb:
	$(CARGO) deb --package wshd

define newline


endef

install:
	install -D -m 755 $(BUILT)/wshd $(ROOT)/bin/wshd
	install -D -m 644 $(BUILT)/handlers/echo_wsh.so $(ROOT)/lib/wshd/handlers/echo_wsh.so
	$(foreach file,$(FILES),install -D -m 644 $(call source,$(file)) $(ROOT)/$(call place,$(file))$(newline)	)
	$(foreach file,$(PREFIXED_FILES),install -D -m 644 /dev/null $(ROOT)/$(call place,$(file))$(newline)	)
	$(foreach file,$(PREFIXED_FILES),$(PREFIXED) $(call source,$(file)) > $(ROOT)/$(call place,$(file))$(newline)	)
	install -D -m 644 packaging/wshd.logrotate $(CONFIGURATION)/logrotate.d/wshd
	install -d $(CONFIGURATION)/wshd
	test -e $(CONFIGURATION)/wshd/wshd.conf || $(PREFIXED) packaging/wshd.conf > $(CONFIGURATION)/wshd/wshd.conf

# A server that runs goes on; the configuration and what handlers have written are the administrator's.
uninstall:
	rm -f $(foreach file,$(FILES) $(PREFIXED_FILES),$(ROOT)/$(call place,$(file))) \
		$(addprefix $(ROOT)/,$(BUILT_FILES)) $(CONFIGURATION)/logrotate.d/wshd
	for directory in lib/wshd/handlers lib/wshd share/doc/wshd/examples share/doc/wshd share/wshd/rust/src \
		share/wshd/rust share/wshd; do rmdir $(ROOT)/$$directory 2>/dev/null || true; done
