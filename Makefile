# Copyright The Fairlead Authors
# SPDX-License-Identifier: Apache-2.0

# One set of flags for building and testing, so that both share one build cache:
# the Kubernetes libraries take minutes to compile and must be compiled once.
export CGO_ENABLED = 0
export GOFLAGS = -trimpath
GO = go
VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# The Kubernetes version that the libraries are of, for kubectl version: v0.37.2 is Kubernetes v1.37.2.
KUBERNETES = $(shell awk '$$1 == "k8s.io/kubectl" { sub(/^v0/, "v1", $$2); print $$2 }' go.mod)
LDFLAGS = -s -w -X main.version=$(VERSION) -X k8s.io/component-base/version.gitVersion=$(KUBERNETES)
PACKAGES = $$($(GO) list ./... | grep -v /test/cluster$$)

.PHONY: help build demo demo-down test test-unit test-race test-cluster test-bench test-kubernetes build-kubernetes bench-service bench-dns bench-network bench-scale compare-dns image manifest test-deploy check lint fmt generate deps clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

build: ## bin/fairlead, bin/fairlead-cni, bin/fairlead-server and bin/shop
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/fairlead ./cmd/fairlead-cni ./cmd/fairlead-server ./examples/shop/shop

demo: deps build ## a 3-node cluster on this machine, the example shop, one request followed; STATE=DIR chooses where
	@hack/demo.sh up

demo-down: ## remove what make demo left running
	@hack/demo.sh down

test: deps build check test-unit test-bench test-deploy test-cluster ## checks, the tests of every package and of bench/ and deploy/, the scenarios on a one-machine cluster; needs root, 17 to 22 minutes on two processors

test-unit: ## every package's tests, as root those against the kernel too; unprivileged those are skipped
	$(GO) test -count=1 $(PACKAGES)

test-race: ## the packages with the most goroutines, under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -count=1 -race ./agent ./checkpoint ./dns ./examples/shop/shop ./hold ./ipam ./kube ./model

test-cluster: build ## the scenarios on a one-machine cluster of 3 nodes; needs root
	$(GO) test -count=1 -v -timeout 20m ./test/cluster

test-bench: build bench/bin/kube-proxy bench/bin/coredns ## the tests of bench/, a module of its own
	cd bench && $(GO) vet ./... && $(GO) test -count=1 ./...

# The image's name is the one in the manifest, unless IMAGE is given. What is built depends on the commit and the Go version only.
IMAGE ?= localhost/fairlead:$(shell awk '$$1 == "appVersion:" { print $$2 }' deploy/chart/Chart.yaml)
PLATFORMS = amd64 arm64
image: ## bin/fairlead-image.tar, an OCI archive for linux/amd64 and linux/arm64; IMAGE=NAME:TAG names it otherwise
	for arch in $(PLATFORMS); do GOARCH=$$arch $(GO) build -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/linux-$$arch/ ./cmd/fairlead ./cmd/fairlead-cni || exit; done
	cd deploy && $(GO) run ./image -o ../bin/fairlead-image.tar -name '$(IMAGE)' -version '$(VERSION)' \
		-revision '$(shell git rev-parse HEAD 2>/dev/null)' -created '$(shell git log -1 --format=%ct 2>/dev/null || echo 0)' \
		-license ../LICENSE $(foreach arch,$(PLATFORMS),linux/$(arch)=../bin/linux-$(arch)/fairlead)

manifest: ## deploy/fairlead.yaml, from the chart
	cd deploy && $(GO) run ./manifest fairlead.yaml

test-deploy: image ## the chart, the manifest and the image: rendered, imported, and run with its privileges; needs root
	cd deploy && $(GO) vet ./... && $(GO) test -count=1 ./...

# Unmodified, from their module; once, and again when bench/go.mod asks for another version.
KUBERNETES_BENCH = $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2; exit }' bench/go.mod)
bench/bin/kube-proxy bench/bin/kube-controller-manager: bench/go.mod
	cd bench && $(GO) build -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES_BENCH)' -o bin/ k8s.io/kubernetes/cmd/$(@F)
	@touch $@

bench-service: build bench/bin/kube-proxy bench/bin/kube-controller-manager bench/bin/coredns ## Fairlead beside kube-proxy and kube-controller-manager; needs root, an hour; BENCH='-quick -run change' for less
	cd bench && $(GO) build -o bin/ . && bin/bench -docs ../docs $(BENCH)

# As its makers release it: with the dependencies of its own module, which bench/go.mod would replace.
COREDNS = v1.14.7
bench/bin/coredns: Makefile
	GOBIN=$(CURDIR)/bench/bin $(GO) install -ldflags '-s -w' github.com/coredns/coredns@$(COREDNS)
	@touch $@

compare-dns: build bench/bin/coredns ## ask Fairlead and CoreDNS the same 100,000 questions, then again with CoreDNS's Corefile for both; a difference that docs/dns.md does not have fails; needs root; COMPARE='-seed 1' for others
	cd bench && $(GO) build -o bin/ . && bin/bench compare-dns $(COMPARE) && bin/bench compare-dns -corefile $(COMPARE)

bench-dns: build bench/bin/kube-controller-manager bench/bin/coredns ## Fairlead's DNS beside CoreDNS, with gdnsd, Knot, NSD, Unbound and bare echoes as yardsticks; needs root, under 40 minutes; BENCH='-quick -run load' for less
	@hack/deps.sh bench-dns
	cd bench && $(GO) build -o bin/ . && cc -O2 -o bin/udp-echo echo/echo.c && bin/bench dns -docs ../docs $(BENCH)

bench-network: build ## Fairlead's pod network beside the reference CNI plugins and the bare link; needs root, under 20 minutes; BENCH='-quick -run attach' for less
	@hack/deps.sh
	cd bench && $(GO) build -o bin/ . ./floor && bin/bench network -docs ../docs $(BENCH)

bench-scale: build bench/bin/kube-proxy bench/bin/coredns ## what a node costs the API server, among 10,000 Services and 5,000 Nodes, beside kube-proxy and CoreDNS; needs root, ten minutes
	cd bench && $(GO) build -o bin/ . && bin/bench scale -docs ../docs $(BENCH)

# The parts of a Kubernetes cluster, unmodified, as their makers stamp them; once, and again when the module asks for other versions.
BED = test/kubernetes/bin
KUBERNETES_BED = $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2; exit }' test/kubernetes/go.mod)
STAMP = k8s.io/component-base/version
STAMPS = -X $(STAMP).gitVersion=$(KUBERNETES_BED) -X $(STAMP).gitMajor=1 -X $(STAMP).gitMinor=$(word 2,$(subst ., ,$(KUBERNETES_BED))) -X $(STAMP).gitTreeState=clean
$(BED)/built: test/kubernetes/go.mod
	cd test/kubernetes && $(GO) build -ldflags '-s -w' -o bin/etcd go.etcd.io/etcd/server/v3
	cd test/kubernetes && $(GO) build -ldflags '-s -w $(STAMPS)' -o bin/ $(addprefix k8s.io/kubernetes/cmd/,kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)
	@touch $@

build-kubernetes: build image bench/bin/coredns $(BED)/built ## what test-kubernetes runs: etcd, Kubernetes, CoreDNS, Fairlead's image, and kubebed, which brings a cluster up by hand; ten minutes the first time
	cp -u bench/bin/coredns $(BED)/
	cd deploy && $(GO) build -ldflags '-s -w' -o ../$(BED)/ ./manifest
	cd test/kubernetes && $(GO) build -ldflags '-s -w' -o bin/ ./kubebed ./pause

test-kubernetes: deps build-kubernetes ## the scenarios on a Kubernetes cluster of real parts; needs root, 12 to 25 minutes on two processors; KUBE='-run TestWalk -v' for less
	cd test/kubernetes && $(GO) vet ./... && $(GO) test -count=1 ./bed && $(GO) test -count=1 -timeout 40m . $(KUBE)

check: ## go vet, formatting, and that generated code is what the generators make
	$(GO) vet ./...
	@hack/check.sh

lint: ## the linters of .golangci.yml
	golangci-lint run

fmt: ## format every Go file
	gofmt -w $$(git ls-files '*.go')

generate: ## re-make generated code
	$(GO) generate ./...

deps: ## install the programs that the demo and the tests call, where missing (needs root)
	@hack/deps.sh

clean: ## remove what was built
	rm -rf bin bench/bin test/kubernetes/bin

# make test must not pass by skipping.
test test-kubernetes: export FAIRLEAD_NO_SKIP = 1
