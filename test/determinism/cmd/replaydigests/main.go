// Replaydigests applies a recorded history and prints, for every entry, what
// another build has to print as well:
//
//	INDEX CHAIN LIFECYCLE BOOKKEEPING
//
// The lifecycle digest is that of the entry's model after it; zero where it has
// none.
package main

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fxamacker/cbor/v2"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: replaydigests HISTORY.cbor.gz")
		os.Exit(2)
	}
	out := bufio.NewWriter(os.Stdout)
	err := replay(os.Args[1], out)
	if err := errors.Join(err, out.Flush()); err != nil {
		fmt.Fprintln(os.Stderr, "replaydigests:", err)
		os.Exit(1)
	}
}

// replay reads a gzipped sequence of CBOR byte strings, one an entry.
func replay(name string, out io.Writer) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	entries := cbor.NewDecoder(z)
	state, chain := fsm.New(), events.Digest{}
	for {
		var b []byte
		if err := entries.Decode(&b); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s, after entry %d: %w", name, state.Index, err)
		}
		e, err := events.Decode(b)
		if err != nil {
			return fmt.Errorf("entry %d: %w", state.Index+1, err)
		}
		if state, _, err = fsm.Apply(state, e); err != nil {
			return err
		}
		chain = events.Chain(chain, state.Index, b)
		var lifecycle events.Digest
		if e.Key != nil {
			lifecycle = state.Lifecycle(e.Key.Model)
		}
		fmt.Fprintln(out, state.Index, chain, lifecycle, state.Bookkeeping())
	}
}
