package door

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// sleeper starts a process that does nothing until it is killed.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("cat")
	_, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

func TestAProcessIsWaitedFor(t *testing.T) {
	cmd := sleeper(t)
	p, err := openProcess(cmd.Process.Pid)
	require.NoError(t, err)
	require.False(t, p.ended())
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error)
	go func() { waits <- p.wait(ctx) }()
	cancel()
	require.Error(t, <-waits, "its end is not waited for any more")
	require.False(t, p.ended())
	p.close()
	p.close()
	require.False(t, p.ended(), "nothing is known of it now")

	p, err = openProcess(cmd.Process.Pid)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	require.NoError(t, p.wait(t.Context()), "nobody has collected it")
	require.True(t, p.ended())
	p.close()
	require.True(t, p.ended(), "which is remembered")

	_ = cmd.Wait()
	_, err = openProcess(cmd.Process.Pid)
	require.ErrorIs(t, err, os.ErrProcessDone)
	_, err = openProcess(0)
	require.ErrorContains(t, err, "pid namespace")
}

// A trainer may die while the round that it waits for is opened.
func TestATrainerThatIsDeadWhenItsRoundOpens(t *testing.T) {
	b := newBench(t, 1)
	defer b.close()
	b.connect()
	cmd := sleeper(t)
	s := b.servers[0]
	s.watch(s.sessions.served(), 0) // of which nothing is known
	require.Nil(t, b.log.Node(0).State().Round.Fault)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	s.watch(s.sessions.served(), cmd.Process.Pid)
	s.work.Wait()
	f := b.log.Node(0).State().Round.Fault
	require.NotNil(t, f)
	require.Equal(t, events.CodeUnavailable, f.Code)
}
