# skep. `make help` lists what there is.

# Written by scripts/setup.sh: which Go to use.
-include .cache/env.mk
GO ?= go

# The Go that setup chose, also for what the tests run; never another by itself.
export PATH := $(if $(findstring /,$(GO)),$(patsubst %/,%,$(dir $(GO))):)$(PATH):/usr/sbin:/sbin
export GOTOOLCHAIN := local
unexport GOROOT

# What tests must not skip. As root on an ordinary machine all of it is there
# after setup; `make test SKEP_REQUIRE=` tests what this machine can.
ifeq ($(shell id -u),0)
SKEP_REQUIRE ?= root,uffd,fuse,tap,netns,nft,qemu,kernel,mkfs,mmdebstrap,runc,containerd
endif
export SKEP_REQUIRE

TEST_FLAGS ?= -race -timeout 40m
PKG ?= ./...

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.DEFAULT_GOAL := help
.PHONY: help collector demo paper test test-firecracker test-containerd test-package test-kubernetes test-knative cluster cluster-down image tools-image package build s3 lint setup setup-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: build ## set up, build, and show one function boot, sleep and start from its snapshot
	bin/skep setup
	bin/skep demo

# VMM=firecracker: in the testbed, or here where there is hardware KVM. PAPER: flags
# of its own, as --functions pyaes.
OUT ?= paper$(if $(filter firecracker,$(VMM)),-firecracker)

paper: build s3 ## re-create the paper's figures in OUT; goes on where it was interrupted; QUICK=1: some five minutes; VMM=firecracker
	bin/skep setup
ifeq ($(VMM),firecracker)
	@$(GO) run ./testbed paper $(if $(QUICK),--quick) --out $(OUT) $(PAPER)
else
	bin/skep experiment all $(if $(VMM),--vmm $(VMM)) $(if $(QUICK),--quick) --out $(OUT) $(PAPER)
endif

build: setup ## build bin/skep, its agent, its shim for containerd and bin/skep-hello
	@$(MAKE) --no-print-directory binaries

# In a make of its own, which has read what setup wrote.
.PHONY: binaries
binaries:
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/skep ./cmd/skep
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/skep-agent ./cmd/skep-agent
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/skep-hello ./functions/hello
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/containerd-shim-skep-v2 ./cmd/containerd-shim-skep-v2
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/skep-store ./cmd/skep-store

# Apart: it pulls in much that nothing else needs.
s3: setup ## build bin/skep-s3, which serves FunctionBench's inputs
	@$(MAKE) --no-print-directory bin/skep-s3

.PHONY: bin/skep-s3
bin/skep-s3:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./functions/s3

test: setup-test ## set up, vet, and run all tests with the race detector, on real microVMs
	@$(MAKE) --no-print-directory tests

# With the tests' own flags, so that what is compiled for vet serves the tests.
.PHONY: tests
tests:
	$(GO) vet $(filter -race,$(TEST_FLAGS)) $(PKG)
	$(GO) test $(TEST_FLAGS) $(PKG)
ifeq ($(PKG),./...)
	@$(GO) run ./testbed test --if-found ./vmm/...
endif

.PHONY: test-page
test-page: ## run the tests of the page in a real Chromium (needs chromium, and SKEP_AXE: axe-core's axe.min.js)
	cd test/page && $(GO) test .

# With packages of its own, below .cache.
PYTHON ?= python3
VENV := $(CURDIR)/.cache/python

test-python: setup-test ## run the tests of the Python client and its notebook, against a real daemon, in a virtual environment of their own
	@[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(VENV) || { echo "please install python3-venv, of Python 3.11 or later"; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e './clients/python[test]'
	cd clients/python && $(VENV)/bin/ruff check --no-cache
	SKEP_PYTHON=$(VENV)/bin/python SKEP_REQUIRE=$(SKEP_REQUIRE),python $(GO) test -timeout 20m ./clients/python ./test -run '^(TestMade|TestClient|TestTypes|TestPython|TestNotebook)$$'

test-firecracker: setup-test ## run the tests of VMMs, of containerd and the end-to-end tests on a real Firecracker
	@$(MAKE) --no-print-directory firecracker-tests

# TESTBED: flags and packages of its own, as --run Clones ./vmm/firecracker.
.PHONY: firecracker-tests
firecracker-tests:
	@$(GO) run ./testbed test $(TESTBED)

test-containerd: setup-test ## run the tests of skep under containerd: the host's, and the one in the directory SKEP_CONTAINERD
	@$(MAKE) --no-print-directory containerd-tests

.PHONY: containerd-tests
containerd-tests:
	SKEP_CONTAINERS=$${SKEP_CONTAINERS:-100} SKEP_KILLS=$${SKEP_KILLS:-20} $(GO) test $(TEST_FLAGS) -timeout 60m ./shim/... ./test/containerd

test-kubernetes: setup-test ## run the tests of pods in microVMs on a Kubernetes of one node, which is built once
	@scripts/setup.sh --cluster
	@$(MAKE) --no-print-directory kubernetes-tests

test-knative: setup-test ## run the tests of Knative's services in microVMs: the directory SKEP_KNATIVE has Knative (docs/kubernetes.md)
	@scripts/setup.sh --cluster
	@SKEP_REQUIRE=$(SKEP_REQUIRE),knative $(MAKE) --no-print-directory kubernetes-tests KUBERNETES_TESTS='-run Knative ./test/kubernetes'

KUBERNETES_TESTS ?= ./cluster ./test/kubernetes

.PHONY: kubernetes-tests
kubernetes-tests:
	SKEP_TEST_KUBERNETES=all $(GO) test $(TEST_FLAGS) -timeout 60m $(KUBERNETES_TESTS)

# CLUSTER: flags of its own, as --dir DIR. Its output is what skep-cluster says.
cluster: ## have a Kubernetes of one node up on this machine, with skep as a runtime of it; say how to use it
	@scripts/setup.sh --cluster >&2
	@$(MAKE) --no-print-directory binaries cluster-binaries >&2
	@bin/skep-cluster up $(CLUSTER)

cluster-down: setup ## end that cluster, and leave nothing of it but the programs that were built for it
	@$(MAKE) --no-print-directory cluster-binaries >&2
	@bin/skep-cluster down $(CLUSTER)

# A module of its own: nothing of it is skep's.
collector: setup ## build bin/otelcol, a collector of OpenTelemetry's that writes spans to a file for `skep trace`
	cd cluster/collector && CGO_ENABLED=0 GOWORK=off $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/otelcol .

IMAGE ?= bin/skep-node.tar

image: setup ## write the image that deploy/ runs on a cluster's nodes into IMAGE, without any registry
	@$(MAKE) --no-print-directory binaries cluster-binaries node-image >&2

# Its skep is linked with nothing of this machine's.
.PHONY: node-image
node-image:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/skep ./cmd/skep
	bin/skep-cluster image $(IMAGE)

.PHONY: cluster-binaries
cluster-binaries:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/skep-cluster ./cmd/skep-cluster
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/skep-pause ./cluster/pause

PACKAGES ?= bin/package

package: setup ## make a .deb, a static tarball, what they are made of and checksums in PACKAGES (docs/install.md)
	@GO=$(GO) packaging/package.sh $(PACKAGES)

TOOLS_IMAGE ?= bin/skep-image.tar

tools-image: setup-test ## write an image of skep with QEMU and a guest kernel into TOOLS_IMAGE, without any registry (docs/install.md)
	@GO=$(GO) packaging/image.sh $(TOOLS_IMAGE)

test-package: setup-test ## build the packages twice and compare them; install, upgrade, remove and purge them in fresh Debian 12 and 13; install as a module; run the image of the tools
	@SKEP_TEST_PACKAGES=1 $(GO) test -timeout 60m ./test/install

lint: setup ## gofmt, vet, staticcheck
	@$(MAKE) --no-print-directory linters

.PHONY: linters
linters:
	@unformatted=$$(find . -name '*.go' -not -path './.cache/*' -exec gofmt -l {} +) && \
		if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

setup: ## install what building and running needs (as root); quick when all is there
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh --test

clean: ## remove what was built
	rm -rf bin .cache
