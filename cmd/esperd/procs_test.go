package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProcsFor(t *testing.T) {
	for name, tc := range map[string]struct {
		available int
		env       map[string]string
		want      int
	}{
		"alone on a large machine":   {96, nil, 4},
		"alone on a small one":       {2, nil, 2},
		"8 ranks on a large machine": {96, map[string]string{"LOCAL_WORLD_SIZE": "8"}, 4},
		"8 ranks on 16 processors":   {16, map[string]string{"LOCAL_WORLD_SIZE": "8"}, 2},
		"more ranks than processors": {2, map[string]string{"LOCAL_WORLD_SIZE": "4"}, 1},
		"Open MPI":                   {8, map[string]string{"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 2},
		"no number":                  {8, map[string]string{"SLURM_NTASKS_PER_NODE": "4(x2)"}, 4},
	} {
		require.Equal(t, tc.want, procsFor(tc.available, tc.env), name)
	}
}
