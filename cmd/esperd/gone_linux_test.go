package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// asTrainer, in the environment, makes the test binary a trainer that fails. It
// is the path of a socket.
const asTrainer = "TEST_BINARY_IS_TRAINER"

func init() {
	if socket := os.Getenv(asTrainer); socket != "" {
		if _, err := client.Connect(context.Background(), socket, client.Options{Slots: []api.SlotRequest{{Name: "r0c0"}}}); err != nil {
			panic(err)
		}
		os.Exit(3)
	}
}

// A daemon that closes because its trainer has died leaves that in the log. One
// that has to close at once does not wait for it.
func TestCloseAfterTheTrainerHasDied(t *testing.T) {
	for name, inTime := range map[string]bool{"in time": true, "at once": false} {
		t.Run(name, func(t *testing.T) {
			cfg, err := resolve(RunFlags{DataDir: str(t.TempDir())}, testSurroundings(nil))
			require.NoError(t, err)
			d, err := openDaemon(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
			require.NoError(t, err)
			exe, err := os.Executable()
			require.NoError(t, err)
			trainer := exec.Command(exe)
			trainer.Env = append(os.Environ(), asTrainer+"="+cfg.Socket)
			require.Error(t, trainer.Run())
			require.Equal(t, 3, trainer.ProcessState.ExitCode())

			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if !inTime {
				cancel()
			}
			closed := make(chan error, 1)
			go func() { closed <- d.close(ctx) }()
			select {
			case err := <-closed:
				require.NoError(t, err)
			case <-time.After(time.Minute):
				t.Fatal("it does not close")
			}
			if !inTime {
				return
			}
			fault := d.node.State().Round.Fault
			require.NotNil(t, fault)
			require.Equal(t, events.CodeUnavailable, fault.Code)
			require.Contains(t, fault.Reason, "ended without closing its session")
		})
	}
}
