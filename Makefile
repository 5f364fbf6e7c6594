GO       ?= go
FUZZTIME ?= 30s
# Schedules of the simulated cluster: of the race run, and of sim-long.
RACE_SCHEDULES ?= 25
LONG_SCHEDULES ?= 20000
# Damaged stores of audit-faults.
AUDIT_FAULTS ?= 10000
# Kills of torch-kill.
TORCH_KILLS ?= 20

.PHONY: help build demo test race bench sim-long audit-faults torch-kill fuzz lint kernels gpu-check gpu-check-try clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/esperd
	$(GO) build -o bin/esperd ./cmd/esperd

demo: build ## replay a recorded 4-rank run through 4 esperds on this machine, and compare
	bin/esperd demo

test: lint ## vet, all tests, and all tests again under the race detector
	$(GO) test -count=1 -timeout 30m ./... # the real processes of test/e2e are no input that go's cache knows of
	$(MAKE) race

race:
	ESPERD_SIM_SCHEDULES=$(RACE_SCHEDULES) RAPID_CHECKS=25 $(GO) test -count=1 -timeout 30m -race -short ./...

bench: ## run the benchmarks, compare with etcd and, from Python, with a broadcast; write docs/bench.md
	$(GO) test -run '^$$' -bench . -benchmem -timeout 1h ./...
	$(GO) run -C test/bench . -report ../../docs/bench.md
	$(GO) run -C test/bench . -python -report ../../docs/bench.md # says so and goes on where torch is missing
	$(GO) run -C test/bench . -restarts -report ../../docs/bench.md
	@if ls test/bench/*_test.go >/dev/null 2>&1; then cd test/bench && $(GO) test -run '^$$' -bench . ./...; fi

sim-long: ## play many more schedules of the simulated cluster
	ESPERD_SIM_SCHEDULES=$(LONG_SCHEDULES) $(GO) test -timeout 24h ./test/sim

audit-faults: ## damage a rank's store in many more ways, and audit it
	ESPERD_AUDIT_FAULTS=$(AUDIT_FAULTS) $(GO) test -count=1 -timeout 24h -run TestEveryFaultIsFound -v ./audit

torch-kill: ## kill a training job many more times, with other numbers of ranks in between
	ESPERD_TORCH_KILLS=$(TORCH_KILLS) $(GO) test -count=1 -timeout 1h -run '^TestKills$$' -v ./test/torch

fuzz: ## fuzz every fuzz target for FUZZTIME
	@set -e; for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' .); do \
	  for t in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$f"); do \
	    echo "$$(dirname "$$f") $$t"; \
	    $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$f")"; \
	  done; done

lint: ## gofmt and go vet
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -C test/bench ./...

# The PTX is committed: whoever builds esperd needs no clang. Another clang makes
# other PTX, so its version is pinned; "ESPERD_REQUIRE=clang go test ./test/ptx"
# compares.
CLANG    ?= clang-19
PTXFLAGS := --target=nvptx64-nvidia-cuda -march=sm_70 -Xclang -target-feature -Xclang +ptx70 \
            -O3 -ffp-contract=off -fno-ident -nostdinc -Wall -Wextra -Werror -S
PTX      ?= gpuexec/kernels/esperd.ptx

kernels: ## compile the GPU kernels to PTX with clang-19 (Debian's package)
	$(CLANG) $(PTXFLAGS) gpuexec/kernels/src/kernels.c -o $(PTX)

gpu-check: ## build bin/gpu-check: the checks for a machine with a GPU
	sh test/gpu/build.sh

gpu-check-try: ## build it, and run all of it here on a stub of libcuda (minutes)
	ESPERD_REQUIRE=torch,gcc ESPERD_GPU_SCRIPT=1 $(GO) test -count=1 -run TestScript -v ./test/gpu

clean: ## remove what build made
	rm -rf bin
