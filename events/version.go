package events

import "slices"

// Version is the newest entry format that this build writes and reads. Nodes
// advertise theirs; a leader writes nothing newer than every node knows. Version
// 2 added resets, requests, reported mismatches and facts; version 3 marks,
// rewinds, recovered logs, residency and attestations (VersionOf).
const Version uint64 = 3

// VersionOf returns the first entry format that can say what e says. A round of
// another mode than keyed counts as newer, so that it is refused as a whole where
// a node knows no such mode, rather than its calls one by one.
func VersionOf(e *Entry) uint64 {
	v := versionOfKind(e.Kind)
	if e.Key != nil {
		v = max(v, versionOfOp(e.Key.Op))
	}
	for i := range e.Events {
		v = max(v, versionOfEvent(&e.Events[i]))
	}
	return v
}

func versionOfKind(k Kind) uint64 {
	switch {
	case k >= KindRecover:
		return 3
	case k >= KindRequest:
		return 2
	}
	return 1
}

func versionOfOp(op Op) uint64 {
	switch op {
	case OpResume:
		return 3
	case OpReset:
		return 2
	}
	return 1
}

func versionOfEvent(ev *Event) uint64 {
	switch {
	case ev.Rewound != nil, ev.Recovered != nil, ev.Residency != nil, ev.Voted != nil, ev.Resided != nil, ev.Attested != nil,
		ev.Configured != nil && ev.Configured.fills(), ev.Germinated != nil && ev.Germinated.Absent:
		return 3
	case ev.Requested != nil, ev.RequestDone != nil, ev.Fact != nil, ev.TrainerEnded != nil:
		return 2
	case ev.Mismatched != nil:
		return max(2, versionOfOp(ev.Mismatched.Got.Op), versionOfOp(ev.Mismatched.Want.Op))
	case ev.OutcomeDiffers != nil:
		return max(2, versionOfOp(ev.OutcomeDiffers.Key.Op))
	case ev.RoundFaulted != nil:
		return versionOfFault(ev.RoundFaulted)
	case ev.RoundOpened != nil && slices.ContainsFunc(ev.RoundOpened.Members, func(m Member) bool { return m.Mode == ModeFollow || m.Mode == ModeObserve }):
		return 2
	}
	return 1
}

func versionOfFault(f *RoundFaulted) uint64 {
	v := max(versionOfOp(f.Got.Op), versionOfOp(f.Want.Op))
	if f.Reason != "" {
		v = max(v, 2)
	}
	return v
}
