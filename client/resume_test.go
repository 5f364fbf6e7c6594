package client_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/door/doortest"
	"github.com/esperd/esperd/events"
)

func TestCheckpointAndResume(t *testing.T) {
	log := doortest.New("run-1", 2)
	nodes := []*esperd{newEsperd(t, log.Node(0)), newEsperd(t, log.Node(1))}
	trainers := make([]*client.Client, 2)
	both := func(call func(rank int) error) (errs [2]error) {
		var wg sync.WaitGroup
		for rank := range nodes {
			wg.Go(func() { errs[rank] = call(rank) })
		}
		wg.Wait()
		return errs
	}
	fine := func(call func(rank int) error) {
		t.Helper()
		require.Equal(t, [2]error{}, both(call))
	}
	ctx := testContext(t)
	fine(func(rank int) error {
		trainers[rank] = nodes[rank].connect(rank, 2)
		_, err := trainers[rank].StepEpoch(ctx, 40)
		return err
	})
	var marks [2]*api.Mark
	fine(func(rank int) (err error) {
		marks[rank], err = trainers[rank].Checkpoint(ctx)
		return err
	})
	require.Equal(t, marks[0], marks[1])
	require.EqualValues(t, 40, marks[0].Epoch)
	fine(func(rank int) error {
		_, err := trainers[rank].StepEpoch(ctx, 57)
		return err
	})
	for _, err := range both(func(rank int) error {
		_, err := trainers[rank].Resume(ctx, marks[0].Mark[:rank*99]) // none, and half of one
		return err
	}) {
		require.ErrorIs(t, err, client.ErrMarkMismatch)
	}
	fine(func(rank int) error {
		f, err := trainers[rank].Resume(ctx, marks[0].Mark)
		if err == nil && f.Epoch != 40 {
			t.Errorf("rank %d is at epoch %d, expected 40", rank, f.Epoch)
		}
		return err
	})
	fine(func(rank int) error {
		_, err := trainers[rank].StepEpoch(ctx, 41)
		return err
	})
}

// A log that knows nothing is begun by a mark alone, and without one it is not.
func TestConnectWithAMark(t *testing.T) {
	first := newEsperd(t, doortest.New("run-1", 1).Node(0)).connect(0, 1)
	_, err := first.StepEpoch(testContext(t), 40)
	require.NoError(t, err)
	m, err := first.Checkpoint(testContext(t))
	require.NoError(t, err)
	mark, _, err := events.DecodeMark(m.Mark)
	require.NoError(t, err)
	mark.Lineage = "9" // it is lost
	b, _, err := events.EncodeMark(mark)
	require.NoError(t, err)

	e := newEsperd(t, doortest.New("run-1", 1).Node(0))
	_, err = client.Connect(testContext(t), e.socket, client.Options{Resume: b[:len(b)-1]})
	require.ErrorIs(t, err, client.ErrMarkMismatch)
	e = newEsperd(t, doortest.New("run-1", 1).Node(0))
	c, err := client.Connect(testContext(t), e.socket, client.Options{Resume: b})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.StepEpoch(testContext(t), 40)
	require.ErrorIs(t, err, client.ErrInvalidInput)
	_, err = c.StepEpoch(testContext(t), 41)
	require.NoError(t, err)
}
