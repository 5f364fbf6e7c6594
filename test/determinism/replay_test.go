package determinism

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// build is one way to build the replay, and what runs it here.
type build struct {
	name string
	env  []string
	qemu string // the emulator where the processor is another one; "": none
}

func builds() []build {
	list := []build{{name: "native"}}
	if runtime.GOARCH == "amd64" {
		// From v3 on the compiler fuses multiplications and additions.
		list = append(list, build{name: "amd64-v3", env: []string{"GOAMD64=v3"}})
	}
	arm := build{name: "arm64", env: []string{"GOARCH=arm64"}} // fuses as well
	if runtime.GOARCH != "arm64" {
		arm.qemu = "qemu-aarch64"
	}
	return append(list, arm)
}

// Every build of the state machine makes the recorded states of the recorded
// history. The file also stands for all logs that users have: a change that
// makes it replay otherwise makes theirs replay otherwise.
func TestReplayIsTheSameEverywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("other builds are not raced")
	}
	golden := filepath.Join("testdata", digestsFile)
	want, err := os.ReadFile(golden)
	if !*update {
		require.NoError(t, err)
	}
	for _, b := range builds() {
		t.Run(b.name, func(t *testing.T) {
			got, err := b.replay(t)
			if *update && b.name == "native" {
				require.NoError(t, os.WriteFile(golden, got, 0o644))
				want = got
			}
			compareDigests(t, string(want), string(got), err)
		})
	}
}

// replay builds and runs the replay program. It may end early: an entry carries
// the digests of the state that it was decided on.
func (b build) replay(t *testing.T) ([]byte, error) {
	command := []string{filepath.Join(t.TempDir(), "replaydigests"), filepath.Join("testdata", historyFile)}
	if b.qemu != "" {
		command = append([]string{emulator(t, b.qemu)}, command...)
	}
	program := command[len(command)-2]
	compile := exec.Command("go", "build", "-o", program, "./cmd/replaydigests")
	compile.Env = append(append(os.Environ(), "CGO_ENABLED=0"), b.env...)
	out, err := compile.CombinedOutput()
	require.NoError(t, err, "%s", out)

	var stdout, stderr bytes.Buffer
	run := exec.Command(command[0], command[1:]...)
	run.Stdout, run.Stderr = &stdout, &stderr
	err = run.Run()
	if strings.Contains(stderr.String(), "microarchitecture support") {
		t.Skipf("this processor does not run %s: %s", b.name, strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), err
}

func emulator(t *testing.T, name string) string {
	for _, candidate := range []string{name, name + "-static"} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	const install = "apt-get install qemu-user"
	if strings.Contains(os.Getenv("ESPERD_REQUIRE"), "qemu") {
		t.Fatalf("%s is missing, and ESPERD_REQUIRE asks for it: %s", name, install)
	}
	t.Skipf("%s is missing, so the replay on that processor is not tested: %s", name, install)
	return ""
}

// compareDigests names the first entry after which two replays differ, and in
// what.
func compareDigests(t *testing.T, want, got string, ended error) {
	t.Helper()
	a, b := strings.Split(strings.TrimSpace(want), "\n"), strings.Split(strings.TrimSpace(got), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		var differ []string
		wantFields, gotFields := strings.Fields(a[i]), strings.Fields(b[i])
		for j, field := range []string{"index", "chain", "lifecycle digest", "bookkeeping digest"} {
			if j >= len(wantFields) || j >= len(gotFields) || wantFields[j] != gotFields[j] {
				differ = append(differ, field)
			}
		}
		t.Fatalf("entry %d is the first with another %s:\nwant %s\ngot  %s", i+1, strings.Join(differ, ", "), a[i], b[i])
	}
	require.NoError(t, ended)
	require.Equal(t, len(a), len(b), "entries replayed")
}

// TestHistoryHoldsEverything keeps the recorded history worth replaying: who
// adds an event or an operation adds it to the generator, too.
func TestHistoryHoldsEverything(t *testing.T) {
	seen := map[string]int{}
	entries := recordedEntries(t)
	state := fsm.New()
	for i, b := range entries {
		e, err := events.Decode(b)
		require.NoError(t, err)
		next, out, err := fsm.Apply(state, e)
		require.NoError(t, err, "entry %d", i+1)
		if out.Refused != "" {
			seen["unfit "+e.Kind.String()]++
		} else if e.Key != nil {
			seen["op "+string(e.Key.Op)]++
		}
		for j := range e.Events {
			name, payload := e.Events[j].Payload()
			seen["event "+name]++
			switch p := payload.(type) {
			case *events.Refused:
				seen["refused "+string(p.Code)]++
			case *events.StageChanged:
				seen["stage "+p.To.String()]++
			case *events.Observed:
				if m := p.Metrics; m.Accuracy != m.Accuracy {
					seen["NaN accuracy"]++
				}
			case *events.RequestDone:
				seen[map[bool]string{true: "request done", false: "request dropped"}[p.Skipped == ""]]++
			case *events.Rewound:
				seen[map[bool]string{true: "adopted mark", false: "held mark"}[p.Adopted]]++
			case *events.Fact:
				seen[map[bool]string{true: "expected fact", false: "unexpected fact"}[p.Unexpected == ""]]++
			}
		}
		state = next
	}
	require.Greater(t, len(entries), 300)
	require.EqualValues(t, 9, state.Round.Number)
	require.Len(t, state.Models, 2)
	wanted := []string{"NaN accuracy", "request done", "request dropped", "expected fact", "unexpected fact", "unfit found", "unfit fault", "unfit call", "unfit request",
		"refused illegal-transition", "refused mark-mismatch", "adopted mark", "held mark", "unfit recover", "refused unknown-slot", "refused config-mismatch", "refused invalid-input"}
	for ev := range reflect.TypeFor[events.Event]().Fields() {
		wanted = append(wanted, "event "+snake(ev.Name))
	}
	for _, op := range []events.Op{events.OpConfigure, events.OpGerminate, events.OpAdvance, events.OpVerdict, events.OpPrune, events.OpSchedulePrune, events.OpAlphaTarget, events.OpStepEpoch, events.OpFence, events.OpReset, events.OpResume} {
		wanted = append(wanted, "op "+string(op))
	}
	for stage := events.StageTraining; stage.Valid() || stage < events.StageResetting; stage++ {
		if stage.Valid() {
			wanted = append(wanted, "stage "+stage.String())
		}
	}
	for _, w := range wanted {
		require.NotZero(t, seen[w], "the history holds no %s", w)
	}
	t.Log(len(entries), "entries:", seen)
}

func snake(name string) string {
	var out strings.Builder
	for i, r := range name {
		if i > 0 && r >= 'A' && r <= 'Z' {
			out.WriteByte('_')
		}
		out.WriteString(strings.ToLower(string(r)))
	}
	return out.String()
}

func recordedEntries(t *testing.T) [][]byte {
	f, err := os.Open(filepath.Join("testdata", historyFile))
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	items := cbor.NewDecoder(z)
	var out [][]byte
	for {
		var b []byte
		err := items.Decode(&b)
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err, fmt.Sprintf("after entry %d", len(out)))
		out = append(out, b)
	}
}
