package door_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/events"
)

// A trainer that dies while its esperd is not there is missed by the next one.
func TestATrainerThatDiesWithoutAnEsperd(t *testing.T) {
	for _, culprit := range []int{0, 1} {
		t.Run(fmt.Sprint("rank ", culprit), func(t *testing.T) {
			j := newJob(t, 2)
			all := []*trainer{j.trainer(0), j.trainer(1)}
			p := j.process(culprit)
			all[culprit] = p.trainer
			together(t, all...)
			for _, tr := range all {
				tr.step(0).ok(t)
			}
			j.stop(culprit)
			info, err := os.Stat(j.socket(culprit) + door.TrainerSuffix)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode())
			p.dies()
			_ = p.cmd.Wait()
			require.Nil(t, j.fault())
			j.log.Node(culprit).Behind(1) // it does not know its round yet
			j.start(culprit)
			time.Sleep(20 * time.Millisecond)
			require.Nil(t, j.fault())
			j.log.Node(culprit).Release()
			f := j.faulted()
			require.Equal(t, events.CodeUnavailable, f.Code)
			require.Equal(t, uint64(culprit), f.Rank)
			require.Equal(t, fmt.Sprintf("process %d ended without closing its session while its esperd was not running (host host%d)", p.cmd.Process.Pid, culprit), f.Reason)
			if culprit == 0 {
				require.Equal(t, events.OpStepEpoch, f.Got.Op, "the log has rank 0's last call")
			}
			all[1-culprit].step(1).refused(t, events.CodeRoundFaulted)
		})
	}
}

// One that outlives its esperd is watched by the next one, before it calls.
func TestATrainerThatOutlivesItsEsperd(t *testing.T) {
	for name, end := range map[string]func(*job, *process, *trainer){
		"it dies": func(j *job, p *process, rank0 *trainer) {
			p.dies()
			require.Equal(t, uint64(1), j.faulted().Rank)
			rank0.step(1).refused(t, events.CodeRoundFaulted)
		},
		"it goes on and dies": func(j *job, p *process, rank0 *trainer) {
			rank0.step(1).ok(t)
			p.returns().ok(t)
			p.step(1).ok(t)
			p.dies()
			require.Equal(t, uint64(1), j.faulted().Rank)
		},
		"it ends in order": func(j *job, p *process, rank0 *trainer) {
			p.closes()
			require.NoFileExists(t, j.socket(1)+door.TrainerSuffix)
			require.Equal(t, uint64(1), j.log.Node(0).State().Round.Tally(1).Ended)
			p.ends()
			j.stop(1)
			require.Nil(t, j.fault())
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 2)
			rank0, p := j.trainer(0), j.process(1)
			together(t, rank0, p.trainer)
			rank0.step(0).ok(t)
			p.step(0).ok(t)
			j.stop(1)
			j.start(1)
			require.Eventually(t, func() bool {
				a := j.trainer(1).post("/v1/busy", members{"session": p.req.Incarnation, "reason": "x", "seconds": 0})
				return a.status == 200
			}, 20*time.Second, time.Millisecond, "it knows the trainer")
			require.Eventually(t, func() bool { // it knows its process
				stray := j.trainer(1)
				stray.req.WorldSize = 2
				a := stray.connect()
				return a.status == 409 && strings.Contains(a.body, fmt.Sprintf("process %d is the trainer of rank 1", p.cmd.Process.Pid))
			}, 20*time.Second, time.Millisecond)
			end(j, p, rank0)
		})
	}
}

func TestANoteThatSaysNothing(t *testing.T) {
	dead := 1 << 22 // above every pid
	for name, write := range map[string]func(t *testing.T, path, good string){
		"nothing": func(t *testing.T, path, good string) {},
		"empty":   func(t *testing.T, path, good string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) },
		"torn":    func(t *testing.T, path, good string) { require.NoError(t, os.WriteFile(path, []byte(good[:9]), 0o600)) },
		"huge": func(t *testing.T, path, good string) {
			require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
		},
		"other trainer's": func(t *testing.T, path, good string) {
			fields := strings.Fields(good)
			fields[3] = strings.Repeat("e", 32)
			require.NoError(t, os.WriteFile(path, []byte(strings.Join(fields, " ")+"\n"), 0o600))
		},
		"other namespace": func(t *testing.T, path, good string) {
			fields := strings.Fields(good)
			fields[2] = "pid:[1]"
			require.NoError(t, os.WriteFile(path, []byte(strings.Join(fields, " ")+"\n"), 0o600))
		},
		"a link": func(t *testing.T, path, good string) {
			require.NoError(t, os.WriteFile(path+".2", []byte(good), 0o600))
			require.NoError(t, os.Symlink(path+".2", path))
		},
		"a pipe":      func(t *testing.T, path, good string) { require.NoError(t, syscall.Mkfifo(path, 0o600)) },
		"a directory": func(t *testing.T, path, good string) { require.NoError(t, os.MkdirAll(path+"/full", 0o700)) },
		"another user's": func(t *testing.T, path, good string) {
			if os.Getuid() != 0 {
				t.Skip("only root can give a file away")
			}
			require.NoError(t, os.WriteFile(path, []byte(good), 0o600))
			require.NoError(t, os.Chown(path, 1, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 1)
			p := j.process(0)
			together(t, p.trainer)
			p.step(0).ok(t)
			j.stop(0)
			path := j.socket(0) + door.TrainerSuffix
			good, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.Remove(path))
			fields := strings.Fields(string(good))
			require.Equal(t, []string{fmt.Sprint(p.cmd.Process.Pid), p.req.Incarnation}, []string{fields[0], fields[3]})
			fields[0] = fmt.Sprint(dead)
			write(t, path, strings.Join(fields, " ")+"\n")
			j.start(0)
			time.Sleep(50 * time.Millisecond)
			require.Nil(t, j.fault())
			p.returns().ok(t) // and the trainer is served, and watched
			p.step(1).ok(t)
			if name != "a directory" { // which stays
				again, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, string(good), string(again))
			} else {
				require.Contains(t, j.logs[0].String(), "the trainer's death is noticed only if it has called since")
			}
			p.dies()
			j.faulted()
		})
	}
}

// A process with the trainer's number is another one if it began at another time.
func TestAnotherProcessHasTheTrainersNumber(t *testing.T) {
	j := newJob(t, 1)
	p := j.process(0)
	together(t, p.trainer)
	j.stop(0)
	path := j.socket(0) + door.TrainerSuffix
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	fields := strings.Fields(string(good))
	fields[1] += "0"
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(fields, " ")+"\n"), 0o600))
	j.start(0)
	require.Contains(t, j.faulted().Reason, "while its esperd was not running")
}
