package main

import (
	"runtime"
	"strconv"
)

// procsMax is how many processors an esperd uses at once: a decision is a chain
// of steps, and the processors are the trainers'.
const procsMax = 4

// localWorlds are the variables in which launchers say how many ranks this
// machine has.
var localWorlds = []string{"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"}

// limitProcs gives this process its rank's share of the machine's processors, at
// most procsMax, unless GOMAXPROCS says otherwise: threads of eight esperds that
// look for work on two processors keep each other from it (docs/bench.md).
func limitProcs(env map[string]string) {
	if env["GOMAXPROCS"] != "" {
		return
	}
	runtime.GOMAXPROCS(procsFor(runtime.GOMAXPROCS(0), env))
}

func procsFor(available int, env map[string]string) int {
	ranks := 1
	for _, name := range localWorlds {
		if n, err := strconv.Atoi(env[name]); err == nil && n > 0 {
			ranks = n
			break
		}
	}
	return max(1, min(procsMax, available/ranks))
}
