# make up    a cloud on this machine, with a first server in it
# make test  everything a contributor runs
SHELL := /bin/bash
export PATH := /usr/local/go/bin:$(PATH)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
DATA    ?= /var/lib/unkai
GUEST   ?= /var/cache/unkai/guest
SEEDS   ?= 1-100
export CGO_ENABLED := 0
GO      := go

MINUTES ?= 15
SEED    ?=

.PHONY: build up down test check unit sim cloud apart alive cluster lab lab-down chaos chaos-short move move-shared move-gluster outside upgrade-test upgrade-short smoke tempest tempest-lab bench guest packages shortcut

build: bin/unkai

bin/unkai: FORCE
	@mkdir -p bin
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/unkai ./cmd/unkai

FORCE:

packages:
	@scripts/packages.sh run

guest:
	@guest/build.sh $(GUEST)

up: packages
	@scripts/up.sh "$(DATA)" "$(GUEST)"

down: build
	@scripts/down.sh "$(DATA)"

# The programs that the kernel runs on packets, after shortcut.c was changed. It needs clang, llvm and libbpf-dev.
shortcut:
	cd driver/linuxnet && clang -O2 -g -Wall -Werror -target bpf -I/usr/include/$$(uname -m)-linux-gnu \
		-DSOURCE="\"$$(sha256sum shortcut.c | cut -d' ' -f1)\"" -c shortcut.c -o shortcut.o && llvm-strip -g shortcut.o

# What a contributor runs before every commit that matters, and .ci/run runs too. Smoke mostly sleeps, and nothing that is beside it looks at the time.
test:
	@scripts/packages.sh test
	@$(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory -j2 -Otarget smoke check sim guest
	@$(MAKE) --no-print-directory unit apart alive cluster chaos-short move outside cloud

check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	@cd tools && $(GO) build -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/staticcheck ./...

unit:
	$(GO) test ./...

# A range of seeds of the deterministic simulation.
sim: build
	@bin/unkai simulate --seeds $(SEEDS) $(if $(filter command environment,$(firstword $(origin SEEDS))),,--rare)

# Whole clouds on real QEMU with stock clients.
cloud: build
	test/cloud.sh

# OpenStack's own integration suite, on simulated hosts: what it calls smoke, and all of it. It mostly sleeps.
smoke: build
	@test/tempest.sh smoke

tempest: build
	@test/tempest.sh all

# The part of it that moves and resizes real guests, in a lab.
tempest-lab: build
	@test/tempest.sh lab

# Controller and agent apart, on real QEMU.
apart: build
	test/apart.sh

# A controller and two hosts, one of which is cut off, on real QEMU.
alive: build
	test/alive.sh

# Three controllers and a host: the one that leads is killed under load.
cluster: build
	test/cluster.sh

# A region on this machine: three controllers and four hosts with real guests. It prints how to use it.
lab: build
	@test/lab.sh up

lab-down:
	@test/lab.sh down

# A lab whose machines are killed, cut off, filled up and told the wrong time while clients use it: make chaos MINUTES=15 SEED=7
chaos: build
	@test/chaos.sh $(MINUTES) $(SEED)

# Half a minute of it in which every kind of fault comes once, with a seed that is always the same.
chaos-short: build
	@test/chaos.sh short 7

# Two hosts and guests that go from one to the other while they are spoken to.
move: build
	test/move.sh

# The same with the guests' disks in a folder that both hosts reach; the host that has a guest dies, and the guest is shelved.
move-shared: build
	SHARED=1 test/move.sh

# The same on a real network file system that both hosts have mounted, and that hangs in the end: GlusterFS, which scripts/packages.sh gluster installs.
move-gluster: build
	test/gluster.sh

# The previous release and this one, there and back under load; three controllers likewise.
upgrade-test: build
	test/upgrade.sh

# The previous release and this one alone.
upgrade-short: build
	@test/upgrade.sh short

# Networks of a region on real packets: IPv6 between hosts, and SNAT whose host is cut off.
outside: build
	@test/outside.sh

bench:
	$(GO) run ./bench
