package determinism

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/esperd/esperd"

// allowed are the functions of other modules that Apply may call: their outcome
// depends on their arguments alone, and on no floating-point arithmetic.
var allowed = []string{
	"bytes.Equal", "cmp.Compare", "strings.Compare",
	"slices.BinarySearchFunc", "slices.Clone", "slices.Delete", "slices.Insert",
	"crypto/sha256.Sum256", "encoding/hex.EncodeToString",
	"encoding/binary.AppendUvarint", "encoding/binary.AppendVarint", "encoding/binary.BigEndian",
	"(encoding/binary.bigEndian).AppendUint64", "(encoding/binary.bigEndian).Uint64",
	"math.Float64bits", "math.Float64frombits", "math.IsNaN", "math.IsInf",
	"fmt.Errorf", "fmt.Sprintf", // for errors and refusals' texts
	"(github.com/fxamacker/cbor/v2.EncMode).Marshal", // of a configuration, to digest it; tested to be one form
}

// passed are functions of this module that are not walked, and why.
var passed = []string{
	"(*" + module + "/events.Event).Payload", // by reflection, for the name of an event in an error text
}

func TestApplyIsDeterministic(t *testing.T) {
	if testing.Short() {
		t.Skip("the walk is the same under the race detector, and slow")
	}
	p, err := load("../..", module+"/fsm")
	require.NoError(t, err)
	apply, err := p.function(module+"/fsm", "Apply")
	require.NoError(t, err)
	var report strings.Builder
	for _, o := range p.offences(apply, allowed, passed) {
		report.WriteString(o.String() + "\n")
	}
	if report.Len() > 0 {
		t.Errorf("what fsm.Apply does has to be the same in every build, on every processor and in every run:\n%s", report.String())
	}
}
