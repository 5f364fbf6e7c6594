package determinism

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each package under testdata/src has an Apply, and says at the end of a line
// what the walk has to find there:
//
//	x := a*b + 1 // want "floating-point *" "floating-point +"
//
// It has to find that and nothing else.
func TestWalkFindsWhatIsPlanted(t *testing.T) {
	if testing.Short() {
		t.Skip("the walk is the same under the race detector, and slow")
	}
	dir := filepath.Join("testdata", "src")
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, name := range names {
		if !name.IsDir() || name.Name() == "helper" {
			continue
		}
		t.Run(name.Name(), func(t *testing.T) {
			p, err := load(dir, "./"+name.Name())
			require.NoError(t, err)
			apply, err := p.function("planted/"+name.Name(), "Apply")
			require.NoError(t, err)
			want := wanted(t, dir, name.Name())
			if name.Name() == "order" {
				want = append(want, wanted(t, dir, "helper")...)
			}
			var got []string
			for _, o := range p.offences(apply, append(allowed, "slices.SortFunc", "slices.Collect", "fmt.Sprint"), nil) {
				require.Equal(t, name.Name()+".Apply", o.path[0], "the path begins at the root")
				got = append(got, fmt.Sprintf("%s:%d: %s", o.pos.Filename, o.pos.Line, o.what))
			}
			compare(t, want, got)
		})
	}
}

var (
	wantComment = regexp.MustCompile(`// want (".*")$`)
	quoted      = regexp.MustCompile(`"[^"]*"`)
)

// wanted reads the want comments of a package, as FILE:LINE: TEXT.
func wanted(t *testing.T, dir, pkg string) []string {
	files, err := filepath.Glob(filepath.Join(dir, pkg, "*.go"))
	require.NoError(t, err)
	var out []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		for i, line := range strings.Split(string(b), "\n") {
			m := wantComment.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			for _, q := range quoted.FindAllString(m[1], -1) {
				text, err := strconv.Unquote(q)
				require.NoError(t, err)
				out = append(out, fmt.Sprintf("%s/%s:%d: %s", pkg, filepath.Base(file), i+1, text))
			}
		}
	}
	return out
}

// compare ticks off each wanted line with one that was got and begins so.
func compare(t *testing.T, want, got []string) {
	t.Helper()
	slices.Sort(want) // the longer text of two first, so that it finds its own
	slices.Reverse(want)
	for _, w := range want {
		i := slices.IndexFunc(got, func(g string) bool { return strings.HasPrefix(g, w) })
		if i < 0 {
			t.Errorf("not found: %s", w)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	for _, g := range got {
		t.Errorf("found, but not planted: %s", g)
	}
}
