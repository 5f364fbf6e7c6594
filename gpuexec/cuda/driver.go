//go:build linux && !nocuda && (amd64 || arm64)

package cuda

import (
	"fmt"
	"reflect"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/esperd/esperd/gpuexec/device"
)

// driver is the part of libcuda's interface that is used. The tags are the names
// of its symbols; the types follow cuda.h.
type driver struct {
	Init       func(flags uint32) result                                                               `sym:"cuInit"`
	Version    func(v *int32) result                                                                   `sym:"cuDriverGetVersion"`
	ErrorName  func(code result, text **byte) result                                                   `sym:"cuGetErrorName"`
	ErrorText  func(code result, text **byte) result                                                   `sym:"cuGetErrorString"`
	Count      func(n *int32) result                                                                   `sym:"cuDeviceGetCount"`
	Get        func(dev *int32, ordinal int32) result                                                  `sym:"cuDeviceGet"`
	Name       func(text *byte, size int32, dev int32) result                                          `sym:"cuDeviceGetName"`
	UUID       func(id *[16]byte, dev int32) result                                                    `sym:"cuDeviceGetUuid"`
	Attribute  func(v *int32, attribute int32, dev int32) result                                       `sym:"cuDeviceGetAttribute"`
	Retain     func(ctx *uintptr, dev int32) result                                                    `sym:"cuDevicePrimaryCtxRetain"`
	Release    func(dev int32) result                                                                  `sym:"cuDevicePrimaryCtxRelease_v2"`
	SetCurrent func(ctx uintptr) result                                                                `sym:"cuCtxSetCurrent"`
	Stream     func(s *uintptr, flags uint32) result                                                   `sym:"cuStreamCreate"`
	EndStream  func(s uintptr) result                                                                  `sym:"cuStreamDestroy_v2"`
	Sync       func(s uintptr) result                                                                  `sym:"cuStreamSynchronize"`
	Load       func(m *uintptr, ptx *byte, n uint32, opts *int32, vals *uintptr) result                `sym:"cuModuleLoadDataEx"`
	Unload     func(m uintptr) result                                                                  `sym:"cuModuleUnload"`
	Function   func(f *uintptr, m uintptr, name string) result                                         `sym:"cuModuleGetFunction"`
	Launch     func(f uintptr, gx, gy, gz, bx, by, bz, shared uint32, s, params, extra uintptr) result `sym:"cuLaunchKernel"`

	Alloc  func(p *uint64, size uintptr) result                        `sym:"cuMemAlloc_v2"`
	Free   func(p uint64) result                                       `sym:"cuMemFree_v2"`
	ToGPU  func(dst uint64, src *byte, size uintptr, s uintptr) result `sym:"cuMemcpyHtoDAsync_v2"`
	ToHost func(dst *byte, src uint64, size uintptr, s uintptr) result `sym:"cuMemcpyDtoHAsync_v2"`
	Copy   func(dst, src uint64, size uintptr, s uintptr) result       `sym:"cuMemcpyDtoDAsync_v2"`
	Set8   func(dst uint64, v uint8, n uintptr, s uintptr) result      `sym:"cuMemsetD8Async"`
	Set16  func(dst uint64, v uint16, n uintptr, s uintptr) result     `sym:"cuMemsetD16Async"`
	Set32  func(dst uint64, v uint32, n uintptr, s uintptr) result     `sym:"cuMemsetD32Async"`
	IPC    func(h *[64]byte, p uint64) result                          `sym:"cuIpcGetMemHandle"`

	Granularity func(n *uintptr, p *allocationProp, option int32) result               `sym:"cuMemGetAllocationGranularity"`
	Reserve     func(p *uint64, size, align uintptr, hint uint64, flags uint64) result `sym:"cuMemAddressReserve"`
	Unreserve   func(p uint64, size uintptr) result                                    `sym:"cuMemAddressFree"`
	Create      func(h *uint64, size uintptr, p *allocationProp, flags uint64) result  `sym:"cuMemCreate"`
	Drop        func(h uint64) result                                                  `sym:"cuMemRelease"`
	Map         func(p uint64, size, offset uintptr, h uint64, flags uint64) result    `sym:"cuMemMap"`
	Unmap       func(p uint64, size uintptr) result                                    `sym:"cuMemUnmap"`
	Access      func(p uint64, size uintptr, d *accessDesc, n uintptr) result          `sym:"cuMemSetAccess"`
	Export      func(fd *int32, h uint64, kind int32, flags uint64) result             `sym:"cuMemExportToShareableHandle"`
}

// result is CUresult.
type result int32

// location is CUmemLocation.
type location struct{ kind, id int32 }

// allocationProp is CUmemAllocationProp.
type allocationProp struct {
	kind, handles int32
	location      location
	win32         uintptr
	flags         [8]byte
}

// accessDesc is CUmemAccessDesc.
type accessDesc struct {
	location location
	flags    int32
}

// Constants of cuda.h.
const (
	minVersion = 11000 // the first that reads the PTX, and has all of driver

	attrProcessors = 16
	attrMajor      = 75
	attrMinor      = 76
	attrVMM        = 102
	attrExportFD   = 103

	pinned       = 1 // CU_MEM_ALLOCATION_TYPE_PINNED
	asFD         = 1 // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
	onDevice     = 1 // CU_MEM_LOCATION_TYPE_DEVICE
	readWrite    = 3 // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
	nonBlocking  = 1 // CU_STREAM_NON_BLOCKING
	jitErrorLog  = 5 // CU_JIT_ERROR_LOG_BUFFER, and its size
	jitErrorSize = 6
)

// loadDriver opens the library and binds its functions. One that lacks a
// function is too old: it is found before it is called.
func loadDriver(path string) (*driver, error) {
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("CUDA: %w: cannot open %s: %w; install NVIDIA's driver, or run with --device host", device.ErrUnsupported, path, err)
	}
	d := new(driver)
	v := reflect.ValueOf(d).Elem()
	var missing []string
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("sym")
		sym, err := purego.Dlsym(lib, name)
		if err != nil {
			missing = append(missing, name)
			continue
		}
		purego.RegisterFunc(v.Field(i).Addr().Interface(), sym)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("CUDA: %w: %s lacks %v: expected a driver of CUDA 11.0 or newer", device.ErrUnsupported, path, strings.Join(missing, ", "))
	}
	return d, nil
}

// text reads a C string.
func text(p *byte) string {
	if p == nil {
		return ""
	}
	n := 0
	for n < 4096 && *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return string(unsafe.Slice(p, n))
}
