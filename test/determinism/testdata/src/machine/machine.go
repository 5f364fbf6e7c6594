// Package machine plants what differs between machines and builds.
package machine

import (
	"os"
	"reflect"
	"runtime"
	"strconv"
	"unsafe"
)

type pair struct{ a, b int }

func Apply(p *pair, b []byte) []any {
	return []any{
		os.Getenv("HOME"),                     // want "the environment: os.Getenv"
		os.Args,                               // want "the package variable os.Args"
		runtime.NumCPU(),                      // want "the runtime: runtime.NumCPU"
		runtime.GOARCH,                        // want "the platform's runtime.GOARCH"
		strconv.IntSize,                       // want "the platform's strconv.IntSize"
		strconv.Itoa(p.a),                     // want "a call of strconv.Itoa, which is not on the list"
		reflect.TypeOf(p),                     // want "reflection: reflect.TypeOf"
		unsafe.Sizeof(*p),                     // want "unsafe.Sizeof"
		*(*int)(unsafe.Pointer(p)),            // want "unsafe.Pointer" "unsafe.Pointer"
		unsafe.String(unsafe.SliceData(b), 1), // want "unsafe.String" "unsafe.SliceData"
		later(),
		assembly(1), // want "planted/machine.assembly, which has no Go body"
	}
}

func init() { later = func() int { return runtime.GOMAXPROCS(0) + len(runtime.GOOS) } } // want "the runtime: runtime.GOMAXPROCS" "the platform's runtime.GOOS"

var later func() int

func assembly(n int) int
