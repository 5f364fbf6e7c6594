package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/pprof"
	"syscall"
	"time"
)

// measures are latencies, and processor times, by what was measured.
type measures map[string][]time.Duration

// What is measured.
const (
	direct    = "direct"    // visible everywhere, by the nodes' or members' own interfaces
	commit    = "commit"    // of direct: until rank 0, or the putting client, has its answer
	through   = "through"   // visible to clients, by the trainers' doors or gRPC
	processor = "processor" // of all nodes, for one operation of direct
	idle      = "idle"      // of all nodes, in one second without operations
)

// A system is what takes turns.
type system interface {
	// direct and through run one operation, the i-th of its kind.
	direct(ctx context.Context, i int) (visible, answered time.Duration, err error)
	through(ctx context.Context, i int) (visible time.Duration, err error)
	close() error
}

// serve is a system in this process: a line on the standard input asks for a
// block, a line of JSON on the standard output answers.
func serve(spec string) error {
	b, err := decodeSetup(spec)
	if err != nil {
		return err
	}
	open := openEsperd
	if b.System == "etcd" {
		open = openEtcd
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := open(ctx, b)
	if err != nil {
		return errors.Join(err, s.close())
	}
	if err := answerBlocks(ctx, s, b); err != nil {
		return errors.Join(err, s.close())
	}
	return s.close()
}

func answerBlocks(ctx context.Context, s system, b setup) error {
	n := numbers{}
	if _, err := n.block(ctx, s, b, b.Warmup); err != nil {
		return err
	}
	stop, err := startProfile(b.Profile)
	if err != nil {
		return err
	}
	rest, err := atRest()
	if err != nil {
		return err
	}
	asked, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	if err := out.Encode(measures{idle: {rest}}); err != nil {
		return err
	}
	for asked.Scan() {
		m, err := n.block(ctx, s, b, b.Ops)
		if err != nil {
			return err
		}
		if err := out.Encode(m); err != nil {
			return err
		}
	}
	return errors.Join(asked.Err(), stop())
}

// numbers count the operations of each kind.
type numbers struct{ direct, through int }

// block runs so many operations of each kind.
func (n *numbers) block(ctx context.Context, s system, b setup, ops int) (measures, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	m := measures{}
	began, err := processorTime()
	if err != nil {
		return nil, err
	}
	for range ops {
		time.Sleep(b.Pause)
		visible, answered, err := s.direct(ctx, n.direct)
		if err != nil {
			return nil, err
		}
		n.direct++
		m[direct], m[commit] = append(m[direct], visible), append(m[commit], answered)
	}
	ended, err := processorTime()
	if err != nil {
		return nil, err
	}
	m[processor] = []time.Duration{(ended - began) / time.Duration(ops)}
	for range ops {
		time.Sleep(b.Pause)
		visible, err := s.through(ctx, n.through)
		if err != nil {
			return nil, err
		}
		n.through++
		m[through] = append(m[through], visible)
	}
	return m, nil
}

func startProfile(name string) (stop func() error, err error) {
	if name == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, pprof.StartCPUProfile(f)
}

// atRest is what the nodes do while nobody asks for anything.
func atRest() (time.Duration, error) {
	began, err := processorTime()
	if err != nil {
		return 0, err
	}
	time.Sleep(time.Second)
	ended, err := processorTime()
	return ended - began, err
}

func processorTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// process is a system in another process.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder

	idle measures
}

// start returns when the system is there and warm.
func start(b setup) (*process, error) {
	if err := os.MkdirAll(b.Dir, 0o700); err != nil {
		return nil, err
	}
	spec, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(self, "-child", string(spec))}
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	return p, p.out.Decode(&p.idle)
}

// block has the system run one block.
func (p *process) block() (measures, error) {
	if _, err := fmt.Fprintln(p.in); err != nil {
		return nil, err
	}
	var m measures
	return m, p.out.Decode(&m)
}

func (p *process) close() error {
	return errors.Join(p.in.Close(), p.cmd.Wait())
}
