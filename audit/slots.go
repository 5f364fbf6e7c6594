package audit

import (
	"strings"

	"github.com/esperd/esperd/events"
)

// NamesSlot says whether an event of an entry names slots, and whether one of them is
// this slot of this model.
func NamesSlot(e *events.Entry, ev *events.Event, model, slot string) (names, this bool) {
	if a := ev.Attested; a != nil {
		for _, o := range a.Others {
			for _, tensor := range o.Tensors {
				of, _, in := strings.Cut(tensor, "/")
				names, this = names || in, this || in && of == slot && a.Model == model
			}
		}
		return names, this
	}
	fields := eventFields(ev)
	for _, f := range fields {
		prefix, last, _ := cutLast(f.path)
		if last != "slot" {
			continue
		}
		of := ""
		if e.Key != nil {
			of = e.Key.Model
		}
		for _, m := range fields {
			if m.path == join(prefix, "model") {
				of = m.value
			}
		}
		names, this = true, this || f.value == slot && of == model
	}
	return names, this
}
