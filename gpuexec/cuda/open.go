//go:build linux && !nocuda && (amd64 || arm64)

package cuda

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/kernels"
)

// gpu is one GPU with its primary context. What follows thread is used on it
// alone.
type gpu struct {
	driver *driver
	thread *thread
	name   string
	uuid   [16]byte

	mu     sync.Mutex
	arenas []*arena

	dev        int32
	ctx        uintptr
	stream     uintptr
	module     uintptr
	functions  map[string]uintptr
	params     []byte // where a launch's parameters lie: outside of Go's heap
	processors uint32
	grain      uint64 // of chunks; 0: memory cannot be exported as file descriptors
	scratch    scratch
	lost       error // why the context answers nothing any more
}

// Open returns a GPU. Errors wrap device.ErrUnsupported where there is none that
// could be used: no driver, an old one, no GPU, another UUID, an old GPU.
func Open(o Options) (device.Device, error) {
	d, err := loadDriver(cmp.Or(o.Library, "libcuda.so.1"))
	if err != nil {
		return nil, err
	}
	g := &gpu{driver: d, thread: newThread(), functions: map[string]uintptr{}}
	if err := g.thread.do(func() error { return g.open(o) }); err != nil {
		return nil, errors.Join(err, g.thread.stop(g.close))
	}
	return g, nil
}

func (g *gpu) open(o Options) error {
	if code := g.driver.Init(0); code == noDevice {
		return fmt.Errorf("%w: %w; run with --device host", device.ErrUnsupported, g.driver.failure("init", code))
	} else if code != 0 {
		return fmt.Errorf("%w: %w", device.ErrUnsupported, g.driver.failure("init", code))
	}
	var version int32
	if err := g.check("driver version", g.driver.Version(&version)); err != nil {
		return err
	}
	if version < minVersion {
		return fmt.Errorf("CUDA: %w: the driver is of CUDA %d.%d: expected 11.0 or newer; upgrade the driver, or run with --device host",
			device.ErrUnsupported, version/1000, version%1000/10)
	}
	if err := g.find(o); err != nil {
		return err
	}
	if err := g.look(); err != nil {
		return err
	}
	return g.start()
}

// find chooses the GPU by its UUID: ordinals are not the same in all processes.
func (g *gpu) find(o Options) error {
	want, err := parseUUID(o.UUID)
	if err != nil {
		return err
	}
	var count int32
	if err := g.check("count GPUs", g.driver.Count(&count)); err != nil {
		return err
	}
	if o.UUID == "" && (o.Ordinal < 0 || o.Ordinal >= int(count)) {
		return fmt.Errorf("CUDA: %w: GPU %d: expected 0 to %d, of those that are visible", device.ErrUnsupported, o.Ordinal, count-1)
	}
	var seen []string
	for i := range count {
		if err := g.check("find GPU", g.driver.Get(&g.dev, i)); err != nil {
			return err
		}
		if err := g.check("ask for its UUID", g.driver.UUID(&g.uuid, g.dev)); err != nil {
			return err
		}
		if o.UUID == "" && int(i) == o.Ordinal || o.UUID != "" && g.uuid == want {
			return nil
		}
		seen = append(seen, g.UUID())
	}
	return fmt.Errorf("CUDA: %w: GPU %s: expected one of %v; is it hidden by CUDA_VISIBLE_DEVICES?", device.ErrUnsupported, o.UUID, seen)
}

func parseUUID(s string) (id [16]byte, err error) {
	if s == "" {
		return id, nil
	}
	digits := strings.ReplaceAll(strings.TrimPrefix(s, "GPU-"), "-", "")
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("CUDA: UUID %.60q: expected 32 hexadecimal digits, as nvidia-smi -L prints them", s)
	}
	return [16]byte(b), nil
}

// look asks what the GPU is and can do.
func (g *gpu) look() error {
	name := make([]byte, 256)
	if err := g.check("ask for its name", g.driver.Name(&name[0], int32(len(name)-1), g.dev)); err != nil {
		return err
	}
	g.name = text(&name[0])
	ask := func(what int32) (int32, error) {
		var v int32
		return v, g.check("ask for an attribute", g.driver.Attribute(&v, what, g.dev))
	}
	var v [5]int32
	for i, what := range []int32{attrMajor, attrMinor, attrProcessors, attrVMM, attrExportFD} {
		var err error
		if v[i], err = ask(what); err != nil {
			return err
		}
	}
	if v[0] < 7 {
		return fmt.Errorf("CUDA: %w: %s has compute capability %d.%d: expected 7.0 or newer", device.ErrUnsupported, g.name, v[0], v[1])
	}
	g.processors = uint32(max(1, v[2]))
	if v[3] != 0 && v[4] != 0 {
		var n uintptr
		if err := g.check("ask for the granularity", g.driver.Granularity(&n, g.prop(), 0)); err != nil {
			return err
		}
		g.grain = max(uint64(n), 2<<20)
	}
	return nil
}

// start makes the context current here, and loads the kernels.
func (g *gpu) start() error {
	if err := g.check("retain the primary context", g.driver.Retain(&g.ctx, g.dev)); err != nil {
		return err
	}
	if err := g.check("make the context current", g.driver.SetCurrent(g.ctx)); err != nil {
		return err
	}
	if err := g.check("make a stream", g.driver.Stream(&g.stream, nonBlocking)); err != nil {
		return err
	}
	var err error
	if g.params, err = unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return fmt.Errorf("CUDA: memory for parameters: %w", err)
	}
	if err := g.load(); err != nil {
		return err
	}
	for _, name := range kernels.Names {
		var f uintptr
		if err := g.check("find the kernel "+name, g.driver.Function(&f, g.module, name)); err != nil {
			return err
		}
		g.functions[name] = f
	}
	return nil
}

func (g *gpu) Name() string { return g.name }
func (g *gpu) Kind() string { return "cuda" }

// UUID returns the name that nvidia-smi and torch use.
func (g *gpu) UUID() string {
	h := hex.EncodeToString(g.uuid[:])
	return strings.Join([]string{"GPU-" + h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// Close gives back what there is. The context's other users keep it.
func (g *gpu) Close() error {
	g.mu.Lock()
	arenas := g.arenas
	g.arenas = nil
	g.mu.Unlock()
	var errs []error
	for _, a := range arenas {
		errs = append(errs, a.Close())
	}
	if err := g.thread.stop(g.close); !errors.Is(err, errEnded) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (g *gpu) close() error {
	var errs []error
	add := func(what string, code result) {
		if err := g.check(what, code); err != nil {
			errs = append(errs, err)
		}
	}
	if g.scratch.at != 0 {
		add("free memory", g.driver.Free(g.scratch.at))
	}
	if g.module != 0 {
		add("unload the kernels", g.driver.Unload(g.module))
	}
	if g.stream != 0 {
		add("end the stream", g.driver.EndStream(g.stream))
	}
	if g.ctx != 0 {
		add("leave the context", g.driver.SetCurrent(0))
		add("release the primary context", g.driver.Release(g.dev))
	}
	g.ctx, g.stream, g.module, g.scratch = 0, 0, 0, scratch{}
	if g.params != nil {
		errs = append(errs, unix.Munmap(g.params))
		g.params = nil
	}
	return errors.Join(errs...)
}
