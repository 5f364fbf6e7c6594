package e2e

import (
	"os"
	"testing"

	"github.com/esperd/esperd/test/internal/testesperd"
)

// binary is the esperd under test.
var binary string

func TestMain(m *testing.M) { os.Exit(testesperd.Main(m, &binary)) }

// plain skips a test in the run under the race detector, for which those are
// enough that start a world, work with it and lose some of it.
func plain(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("the other tests are enough for the race detector")
	}
}
