package e2e

import (
	"os"
	"testing"

	"github.com/esperd/esperd/test/internal/testesperd"
)

// binary is the esperd under test.
var binary string

func TestMain(m *testing.M) { os.Exit(testesperd.Main(m, &binary)) }
