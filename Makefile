# Installs what `cargo build --release` has built, for systems without the Debian package (cargo deb).
#
#   make                                     build
#   make install                             into /usr/local, configuration into /etc
#   make install PREFIX=/usr DESTDIR=/stage  for packagers
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

INSTALL_PROGRAM = install -D -m 755
INSTALL_DATA = install -D -m 644
ROOT = $(DESTDIR)$(PREFIX)
# Files that name /usr name the prefix instead.
PREFIXED = sed -e 's|^prefix=/usr$$|prefix=$(PREFIX)|' -e 's|/usr/bin/|$(PREFIX)/bin/|' \
	-e 's|/usr/lib/wshd/|$(PREFIX)/lib/wshd/|'

.PHONY: all install deb

all:
	$(CARGO) build --release --package wshd

deb:
	$(CARGO) deb --package wshd

install:
	$(INSTALL_PROGRAM) $(BUILT)/wshd $(ROOT)/bin/wshd
	$(INSTALL_DATA) $(BUILT)/handlers/echo_wsh.so $(ROOT)/lib/wshd/handlers/echo_wsh.so
	$(INSTALL_DATA) include/ws_handler.h $(ROOT)/include/ws_handler.h
	$(INSTALL_DATA) include/ws_handler.hpp $(ROOT)/include/ws_handler.hpp
	$(INSTALL_DATA) man/ws_handler.3 $(ROOT)/share/man/man3/ws_handler.3
	$(INSTALL_DATA) man/wshd.conf.5 $(ROOT)/share/man/man5/wshd.conf.5
	$(INSTALL_DATA) man/wshd.7 $(ROOT)/share/man/man7/wshd.7
	$(INSTALL_DATA) man/wshd.8 $(ROOT)/share/man/man8/wshd.8
	$(INSTALL_DATA) README.md $(ROOT)/share/doc/wshd/README.md
	$(INSTALL_DATA) CHANGELOG.md $(ROOT)/share/doc/wshd/CHANGELOG.md
	$(INSTALL_DATA) plugins/echo_wsh.c $(ROOT)/share/doc/wshd/examples/echo_wsh.c
	$(INSTALL_DATA) packaging/examples/wshd.socket $(ROOT)/share/doc/wshd/examples/wshd.socket
	$(INSTALL_DATA) packaging/completions/wshd.bash $(ROOT)/share/bash-completion/completions/wshd
	$(INSTALL_DATA) packaging/completions/_wshd $(ROOT)/share/zsh/vendor-completions/_wshd
	$(INSTALL_DATA) packaging/completions/wshd.fish $(ROOT)/share/fish/vendor_completions.d/wshd.fish
	$(INSTALL_DATA) packaging/wshd.sysusers $(ROOT)/lib/sysusers.d/wshd.conf
	$(INSTALL_DATA) packaging/wshd.tmpfile $(ROOT)/lib/tmpfiles.d/wshd.conf
	$(INSTALL_DATA) packaging/wshd.logrotate $(DESTDIR)$(SYSCONFDIR)/logrotate.d/wshd
	install -d $(ROOT)/lib/pkgconfig $(ROOT)/lib/systemd/system $(DESTDIR)$(SYSCONFDIR)/wshd
	$(PREFIXED) packaging/wshd.pc > $(ROOT)/lib/pkgconfig/wshd.pc
	$(PREFIXED) packaging/wshd.service > $(ROOT)/lib/systemd/system/wshd.service
	test -e $(DESTDIR)$(SYSCONFDIR)/wshd/wshd.conf || \
		$(PREFIXED) packaging/wshd.conf > $(DESTDIR)$(SYSCONFDIR)/wshd/wshd.conf
