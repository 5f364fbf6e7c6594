// Package global plants a memory beside the state.
package global

var (
	count  int
	last   struct{ names [4]string }
	seen   = map[string]bool{}
	before *int
	names  = [...]string{"a", "b"}
)

func Apply(name string, i int) (string, bool) {
	count++                // want "a write to the package variable planted/global.count"
	last.names[i&3] = name // want "a write to the package variable planted/global.last"
	seen[name] = true      // want "a write to the package variable planted/global.seen"
	*before = i            // want "a write to the package variable planted/global.before"
	return names[i&1], seen[name]
}
