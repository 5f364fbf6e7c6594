package main

import (
	"fmt"
	"io"
)

// progress says on stderr how far rank 0 is: in one line that is drawn over on
// a terminal, now and then elsewhere.
type progress struct {
	w                 io.Writer
	terminal          bool
	epochs, decisions int
	total             int
}

func newProgress(w io.Writer, rec *Recording) *progress {
	p := &progress{w: w, terminal: isTerminal(w), total: rec.Epochs()}
	fmt.Fprintf(w, "starting %s\n", plural(rec.World, "esperd"))
	return p
}

// did is told of rank 0's steps.
func (p *progress) did(s *Step) {
	switch s.Kind {
	case "advance":
		p.decisions++
	case recordingStepEpoch:
		p.epochs++
		switch {
		case p.terminal:
			fmt.Fprintf(p.w, "\repoch %d/%d, %d decisions", p.epochs, p.total, p.decisions)
		case p.epochs == p.total || p.epochs%max(1, p.total/4) == 0:
			fmt.Fprintf(p.w, "epoch %d/%d, %d decisions\n", p.epochs, p.total, p.decisions)
		}
	}
}

// end leaves the line.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprintln(p.w)
	}
}
