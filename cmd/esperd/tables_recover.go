package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/recovery"
	"github.com/esperd/esperd/replica"
)

// foundDir is one directory, as esperd recover --json tells it.
type foundDir struct {
	Dir         string        `json:"dir"`
	Node        events.NodeID `json:"node,omitempty"`
	Run         string        `json:"run_id,omitempty"`
	Lineage     string        `json:"lineage,omitempty"`
	Last        uint64        `json:"last_entry,omitempty"`
	Chain       events.Digest `json:"chain,omitzero"`
	Time        int64         `json:"time,omitempty"` // of the last entry, Unix nanoseconds
	First       uint64        `json:"replayed_from,omitempty"`
	Committed   uint64        `json:"committed,omitempty"` // the rest is from raft's log
	Problem     string        `json:"problem,omitempty"`   // it is no candidate
	RaftProblem string        `json:"raft_problem,omitempty"`
	Models      []foundModel  `json:"models,omitempty"`

	Dropped *replica.Dropped `json:"dropped,omitempty"` // the end of the log, which would not be kept
}

type foundModel struct {
	Name       string `json:"name"`
	Generation uint64 `json:"generation"`
	Epoch      int64  `json:"epoch"`
}

// foundPeer is who was asked.
type foundPeer struct {
	Address string        `json:"address"`
	Error   string        `json:"error,omitempty"`
	Node    events.NodeID `json:"node,omitempty"`
	Rank    uint64        `json:"rank"`
	Lineage string        `json:"lineage,omitempty"`
	Index   uint64        `json:"index"`
	Leader  events.NodeID `json:"leader,omitempty"`
}

// fill copies a plan into the report.
func (r *recoverReport) fill(p *recovery.Plan, force bool) {
	r.Plan, r.Against = p, append(r.Against, p.Refused(force)...)
	for _, s := range p.Survivors {
		r.Found = append(r.Found, found(s))
	}
	for _, a := range p.Peers {
		f := foundPeer{Address: a.Address, Node: a.Node, Rank: a.Rank, Lineage: a.Lineage, Index: a.Index, Leader: a.Leader}
		if a.Err != nil {
			f.Error = a.Err.Error()
		}
		r.Peers = append(r.Peers, f)
	}
	if p.Chosen != nil {
		r.Continues = p.Chosen.Dir
	}
}

func found(s *recovery.Survivor) foundDir {
	f := foundDir{Dir: s.Dir, Node: s.Node}
	if s.Problem != nil {
		f.Problem = s.Problem.Error()
	}
	k := s.Kept
	if k == nil {
		return f
	}
	f.Run, f.Lineage, f.Last, f.Chain, f.Time, f.First, f.Committed = k.State.Run, k.State.Lineage, k.State.Index, k.Chain, k.Time, k.First, k.Committed
	if k.RaftProblem != nil {
		f.RaftProblem = k.RaftProblem.Error()
	}
	f.Dropped = k.Dropped
	for _, m := range k.State.Models {
		f.Models = append(f.Models, foundModel{m.Name, m.Generation, m.Epoch})
	}
	return f
}

// write tells the report to people.
func (r *recoverReport) write(w io.Writer, again, forced string) error {
	for _, left := range r.Settled {
		fmt.Fprintln(w, oneLine(left)+".")
	}
	if r.Plan == nil { // an interrupted one was completed
		_, err := fmt.Fprintln(w, "That is completed now. Start the job as always.")
		return err
	}
	for i := range r.Found {
		r.Found[i].write(w)
	}
	if len(r.Peers) > 0 {
		fmt.Fprintln(w, "\nPeers:")
	}
	for _, p := range r.Peers {
		what := "does not answer: " + p.Error
		if p.Error == "" {
			what = fmt.Sprintf("node %s, rank %d, entry %d of log %s, leader %s", nodeText(p.Node), p.Rank, p.Index, orDash(p.Lineage), orDash(string(p.Leader)))
		}
		fmt.Fprintf(w, "  %s: %s\n", oneLine(p.Address), oneLine(what))
	}
	if r.Plan.Chosen != nil {
		r.consequences(w)
	}
	for _, a := range r.Against {
		fmt.Fprintf(w, "\nAGAINST IT: %s.\n", oneLine(a.Why))
	}
	var err error
	switch {
	case r.Done != nil:
		_, err = fmt.Fprintf(w, "\nDone: %s is node %s of log %s, which goes on at entry %d.\nThe directory of before is kept as it was, at %s.\nStart the job as always.\n",
			oneLine(r.Done.Dir), r.Done.Node, r.Done.Lineage, r.Done.Index, oneLine(r.Done.Evidence))
	case r.forcible():
		_, err = fmt.Fprintf(w, "\nNothing was changed. To do it all the same, knowing that:\n  %s\n", oneLine(forced))
	case len(r.Against) == 0:
		_, err = fmt.Fprintf(w, "\nThis was a dry run: nothing was changed. To do it:\n  %s\n", oneLine(again))
	}
	return err
}

// forcible reports whether --force is all that is missing.
func (r *recoverReport) forcible() bool {
	return len(r.Against) > 0 && r.Plan.Chosen != nil && !slices.ContainsFunc(r.Against, func(a recovery.Reason) bool { return a.Final })
}

func (f *foundDir) write(w io.Writer) {
	fmt.Fprintf(w, "%s\n", oneLine(f.Dir))
	if f.Problem != "" {
		fmt.Fprintf(w, "  NO CANDIDATE: %s\n", oneLine(f.Problem))
		return
	}
	fmt.Fprintf(w, "  node %s, run %s, log %s\n", orDash(string(f.Node)), oneLine(f.Run), f.Lineage)
	fmt.Fprintf(w, "  entries to %d (written %s), chain %s\n", f.Last, time.Unix(0, f.Time).UTC().Format("2006-01-02 15:04:05 UTC"), f.Chain.Short())
	verified := "verified: replayed from the first entry on, every digest is as recorded"
	if f.First > 1 {
		verified = fmt.Sprintf("verified from entry %d on; the entries before it are not here, or only their chain could be checked", f.First)
	}
	fmt.Fprintf(w, "  %s\n", verified)
	if n := f.Last - f.Committed; n > 0 {
		fmt.Fprintf(w, "  the last %d of them are from raft's log: the history was written up to entry %d\n", n, f.Committed)
	}
	if d := f.Dropped; d != nil {
		fmt.Fprintf(w, "  ENTRIES %d TO %d DO NOT FOLLOW from those before them: written from there on by %s; %s\n", d.From, d.To, d.Who(), oneLine(d.Why))
		return
	}
	if f.RaftProblem != "" {
		fmt.Fprintf(w, "  its raft log cannot be used, so what it may have had beyond that is not known: %s\n", oneLine(f.RaftProblem))
	}
}

// consequences says what is kept and what is lost.
func (r *recoverReport) consequences(w io.Writer) {
	p := r.Plan
	k := p.Chosen.Kept
	fmt.Fprintf(w, "\nThe run would go on with %s:\n", oneLine(p.Chosen.Dir))
	if r.Done != nil {
		fmt.Fprintln(w, "  (as was done below)")
	}
	models := []string{}
	for _, m := range k.State.Models {
		models = append(models, fmt.Sprintf("model %s in generation %d at epoch %d", m.Name, m.Generation, m.Epoch))
	}
	if len(models) == 0 {
		models = append(models, "no model yet")
	}
	fmt.Fprintf(w, "  kept    everything up to entry %d; there: %s, round %d\n", k.State.Index, oneLine(strings.Join(models, "; ")), k.State.Round.Number)
	lost := "nothing that is known"
	if missing := p.Missing(); len(missing) > 0 {
		var names []string
		for _, m := range missing {
			names = append(names, fmt.Sprintf("%s (node %s)", m.Address, nodeText(m.Node)))
		}
		lost = fmt.Sprintf("what was decided after entry %d, if anything was: of the voters %s nothing is left here", k.State.Index, strings.Join(names, ", "))
	}
	if d := k.Dropped; d != nil {
		lost = fmt.Sprintf("entries %d to %d, and what raft's log had after them: all that was decided on the wrong state", d.From, d.To)
	}
	fmt.Fprintf(w, "  lost    %s\n", oneLine(lost))
	later := "is of what is lost, and can be resumed all the same"
	if k.Dropped != nil {
		later = "is of a wrong state: do not resume it"
	}
	fmt.Fprintf(w, "  marks   those of entries up to %d stay good; a later one %s\n", k.State.Index, later)
	for _, s := range p.Survivors {
		switch {
		case s == p.Chosen:
		case s.Kept == nil:
			fmt.Fprintf(w, "  aside   %s: no candidate; move it aside before its esperd starts, which may refuse it, and it joins as a new node\n", oneLine(s.Dir))
		default:
			fmt.Fprintf(w, "  rejoins %s: when its esperd starts, it keeps this directory aside and joins as a new node\n", oneLine(s.Dir))
		}
	}
}
