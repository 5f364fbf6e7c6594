package gpuexec

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/esperd/esperd/gpuexec/cuda"
	"github.com/esperd/esperd/gpuexec/device"
)

// OpenDevice opens what --device names: "auto" (the trainer's GPU, named by its
// UUID, or else the first; the host where there is none), "host", "cuda",
// "cuda:N" (N as the driver numbers the visible GPUs; a UUID counts more), or
// "none", for which it returns nil. Why "auto" took the host is in the second
// result.
func OpenDevice(spec, uuid string) (d device.Device, why, err error) {
	kind, number, numbered := strings.Cut(spec, ":")
	o := cuda.Options{UUID: uuid}
	if numbered {
		if o.Ordinal, err = strconv.Atoi(number); err != nil || o.Ordinal < 0 {
			kind = ""
		}
	}
	switch {
	case kind == "none" && !numbered:
		return nil, nil, nil
	case kind == "host" && !numbered:
		d, err = device.Host()
		return d, nil, err
	case kind == "cuda":
		d, err = cuda.Open(o)
		return d, nil, err
	case kind == "auto" && !numbered:
		d, err = cuda.Open(o)
		if err == nil || !errors.Is(err, device.ErrUnsupported) || uuid != "" {
			return d, nil, err
		}
		why = err
		d, err = device.Host()
		return d, why, err
	}
	return nil, nil, fmt.Errorf("device %.40q: expected auto, host, cuda, cuda:N or none", spec)
}
