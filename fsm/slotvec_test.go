package fsm

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Changed finds what differs, whatever pages it is on.
func TestChanged(t *testing.T) {
	var names []string
	for i := range 3*slotPage - 5 {
		names = append(names, fmt.Sprint("s", i))
	}
	l := configured(t, names...)
	before := l.model()
	changed := func() (list []int) {
		l.model().Changed(before, func(i int) { list = append(list, i) })
		return list
	}
	require.Empty(t, changed())
	want := []int{0, slotPage - 1, slotPage, 2 * slotPage, 3*slotPage - 6}
	for _, i := range want {
		l.call(names[i], plainGermination)
	}
	require.Equal(t, want, changed())
}
