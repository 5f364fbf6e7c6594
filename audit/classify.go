package audit

import (
	"fmt"

	"github.com/esperd/esperd/events"
)

// classify says in which way a history that holds got differs from one that
// holds expected, from the first entry at which they do. Each list has what
// follows in its history, at least one entry unless that ends there.
func classify(expected, got []*events.Entry) (Verdict, string) {
	is := func(a []*events.Entry, i int, b []*events.Entry, j int) bool {
		return i < len(a) && j < len(b) && content(a[i]) == content(b[j])
	}
	switch {
	case len(expected) == 0 || len(got) == 0:
		return VerdictPayload, "the entries differ"
	case is(got, 0, expected, 1) && is(got, 1, expected, 0):
		return VerdictOrder, fmt.Sprintf("%s and %s are in another order", title(expected[0]), title(expected[1]))
	case is(got, 0, expected, 1):
		return VerdictMissing, title(expected[0]) + " is missing"
	case is(got, 1, expected, 0):
		return VerdictExtra, title(got[0]) + " is one entry more"
	case expected[0].Key != nil && got[0].Key != nil && !sameCall(expected[0].Key, got[0].Key):
		return VerdictOrder, fmt.Sprintf("%s stands where %s is expected", title(got[0]), title(expected[0]))
	default:
		return VerdictPayload, title(expected[0]) + " has other content"
	}
}

// content is an entry without what says where it stands and when it was written.
func content(e *events.Entry) string {
	c := *e
	c.Predecessor, c.Time, c.Lifecycle, c.Bookkeeping = 0, 0, events.Digest{}, events.Digest{}
	if e.Key != nil {
		k := *e.Key
		k.Call, k.Fence = 0, 0
		c.Key = &k
	}
	b, err := events.Marshal(c)
	if err != nil {
		return fmt.Sprint(err) // a decoded entry always encodes
	}
	return string(b)
}

func sameCall(a, b *events.Key) bool {
	return a.Model == b.Model && a.Op == b.Op && a.Slot == b.Slot
}

// title names an entry.
func title(e *events.Entry) string {
	if e.Key != nil {
		return e.Key.At(e.Site)
	}
	for i := range e.Events {
		if name, _ := e.Events[i].Payload(); name != "" {
			return fmt.Sprintf("a %s entry (%s)", e.Kind, name)
		}
	}
	return fmt.Sprintf("a %s entry", e.Kind)
}

// slotOf is the slot that the first differing event names.
func slotOf(expected, got *events.Entry) (slot string, seed uint64) {
	for i := range max(len(expected.Events), len(got.Events)) {
		for _, list := range [][]events.Event{expected.Events, got.Events} {
			if i < len(list) && (i >= len(expected.Events) || i >= len(got.Events) || !sameEvent(&expected.Events[i], &got.Events[i])) {
				if slot, seed = slotOfEvent(&list[i]); slot != "" {
					return slot, seed
				}
			}
		}
	}
	return "", 0
}

func sameEvent(a, b *events.Event) bool {
	return len(compareFields(eventFields(a), eventFields(b))) == 0
}

func eventFields(ev *events.Event) []field {
	name, payload := ev.Payload()
	return fieldsOf(name, payload)
}

// slotOfEvent reads the slot and seed that an event is about.
func slotOfEvent(ev *events.Event) (slot string, seed uint64) {
	for _, f := range eventFields(ev) {
		switch _, last, _ := cutLast(f.path); last {
		case "slot":
			slot = f.value
		case "seed":
			_, _ = fmt.Sscan(f.value, &seed)
		}
	}
	return slot, seed
}
