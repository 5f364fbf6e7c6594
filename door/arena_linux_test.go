package door_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// upgrade asks for the arena's protocol.
func (tr *trainer) upgrade(body any) (*net.UnixConn, *http.Response) {
	t := tr.j.t
	conn, err := net.Dial("unix", tr.j.socket(tr.rank))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	text := jsonOf(t, body)
	_, err = fmt.Fprintf(conn, "POST /v1/arena HTTP/1.1\r\nHost: esperd\r\nConnection: Upgrade\r\nUpgrade: esperd-arena\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	require.NoError(t, err)
	var head []byte // byte by byte: what follows is not HTTP
	for !strings.HasSuffix(string(head), "\r\n\r\n") {
		b := make([]byte, 1)
		_, err := io.ReadFull(conn, b)
		require.NoError(t, err)
		head = append(head, b...)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(string(head)), conn)), nil)
	require.NoError(t, err)
	return conn.(*net.UnixConn), resp
}

func (tr *trainer) attaches(slot string, tensors ...events.Tensor) reply {
	return tr.post("/v1/slots/"+slot+"/attach", members{"session": tr.req.Incarnation, "tensors": tensors})
}

var weight = events.Tensor{Name: "weight", Shape: []uint64{4, 3}, DType: "float32"}

func TestATrainerTakesItsArena(t *testing.T) {
	j := newJob(t, 1, onHost(100))
	tr := j.trainers(arena)[0]
	require.Contains(t, tr.attaches("r0c0", weight).refused(t, events.CodeConfigMismatch).Detail, "holds no seed at this fence")
	tr.germinate("r0c0").ok(t)
	tr.step(0).ok(t)
	v := decodeAs[api.View](t, tr.attaches("r0c0", weight).ok(t).body)
	require.Equal(t, "conv", v.Blueprint)
	for what, wrong := range map[string]events.Tensor{
		"is float32 in the log, float16 here": {Name: "weight", Shape: []uint64{4, 3}, DType: "float16"},
		"has the shape [4 3] in the log":      {Name: "weight", Shape: []uint64{3, 4}, DType: "float32"},
		"is weight in the log, w here":        {Name: "w", Shape: []uint64{4, 3}, DType: "float32"},
	} {
		require.Contains(t, tr.attaches("r0c0", wrong).refused(t, events.CodeConfigMismatch).Detail, what)
	}
	tr.attaches("r0c0").refused(t, events.CodeConfigMismatch)

	session := members{"session": tr.req.Incarnation}
	for i := range 2 { // the same trainer may take it again
		conn, resp := tr.upgrade(session)
		require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
		o, err := device.Receive(conn)
		require.NoError(t, err)
		require.Equal(t, "host", o.Kind)
		fd := o.Chunks[0].FD
		require.Error(t, unix.Ftruncate(fd, 0), "it cannot be cut off")
		mem, err := unix.Mmap(fd, 0, int(o.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(t, err)
		require.Equal(t, i == 0, binary.LittleEndian.Uint32(mem[v.Tensors[0].Parameter:]) != 0, "Philox numbers, as long as nobody writes")
		clear(mem) // whatever a trainer writes, and the table with it
		require.NoError(t, unix.Munmap(mem))
		for _, c := range o.Chunks {
			unix.Close(c.FD)
		}
	}
	tr.step(1).ok(t)
	tr.post("/v1/slots/r0c0/loaded", session).ok(t)

	_, resp := tr.upgrade(members{"session": strings.Repeat("0", 32)})
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	_, resp = tr.upgrade(members{"session": tr.req.Incarnation, "model": "critic"})
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, 422, tr.post("/v1/arena", session).status, "no upgrade is asked for")

	// A trainer that hangs up in the middle, and one that says goodbye.
	conn, _ := tr.upgrade(session)
	conn.Close()
	tr.step(2).ok(t)
	tr.post("/v1/close", session).ok(t)
	_, resp = tr.upgrade(session)
	require.NotEqual(t, http.StatusSwitchingProtocols, resp.StatusCode)
}

func TestAnArenaIsAskedForWhenConnecting(t *testing.T) {
	j := newJob(t, 1, onHost(100))
	tr := j.trainers()[0]
	require.Contains(t, tr.attaches("r0c0", weight).refused(t, events.CodeConfigMismatch).Detail, "without asking for one")
	_, resp := tr.upgrade(members{"session": tr.req.Incarnation})
	require.NotEqual(t, http.StatusSwitchingProtocols, resp.StatusCode)
}

// A trainer's own tensors are fingerprinted in a file that it hands over, as the
// executor does it in its arena.
func TestTensorsOfTheTrainersOwn(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers()[0]
	fd, err := unix.MemfdCreate("tensors", 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	contents := []byte(strings.Repeat("0123456789abcdef", 40_000))
	_, err = unix.Write(fd, contents)
	require.NoError(t, err)
	ask := func(list ...api.HostTensor) (out struct {
		Fingerprints []element.Fingerprint
		Error        string
	}) {
		conn, resp := tr.upgrade(members{"session": tr.req.Incarnation, "tensors": list})
		require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
		_, _, err := conn.WriteMsgUnix([]byte{'f'}, unix.UnixRights(fd), nil)
		require.NoError(t, err)
		var n [4]byte
		_, err = io.ReadFull(conn, n[:])
		require.NoError(t, err)
		b := make([]byte, binary.LittleEndian.Uint32(n[:]))
		_, err = io.ReadFull(conn, b)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, &out))
		return out
	}
	a := ask(api.HostTensor{DType: "float32", Shape: []uint64{160_000}, Bytes: 640_000}, api.HostTensor{DType: "int64", Shape: []uint64{}, Offset: 16, Bytes: 8})
	require.Empty(t, a.Error)
	require.Equal(t, element.SumOf(contents, 0).Finish("float32", []uint64{160_000}, 640_000), a.Fingerprints[0])
	require.Equal(t, element.SumOf(contents[16:24], 0).Finish("int64", nil, 8), a.Fingerprints[1])
	for _, wrong := range []api.HostTensor{{DType: "float32", Shape: []uint64{2}, Bytes: 12}, {DType: "int8", Offset: 640_000, Bytes: 1}, {DType: "int8", Bytes: 1 << 62}, {DType: "int8", Offset: 1 << 63, Bytes: 8}} {
		require.NotEmpty(t, ask(wrong).Error)
	}
}
