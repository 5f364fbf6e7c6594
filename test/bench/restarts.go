package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// What restarts cost: the first decision of a new round, a mark's size and the
// resume of one, and the history that a node with an empty disk fetches.

const (
	restartRanks  = 8
	restartRounds = 10
	restartTarget = 2 * time.Second
	markRanks     = 4
	resumes       = 20
)

func driveRestarts(s settings) error {
	dir, err := workDir(s.dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	machine, err := describe(dir)
	if err != nil {
		return err
	}
	began := time.Now()
	var out strings.Builder
	fmt.Fprintf(&out, "%s, `%s`\n\n%s\n| | figure |\n|---|---|\n", began.UTC().Format("2006-01-02 15:04 UTC"), command(), machine)
	for _, part := range []func(context.Context, string, func(string, ...any)) error{newRounds, marks, fetches(s.entries)} {
		err := part(context.Background(), dir, func(format string, args ...any) {
			line := fmt.Sprintf("| "+format+" |\n", args...)
			fmt.Print(line)
			out.WriteString(line)
		})
		if err != nil {
			return err
		}
	}
	if s.report == "" {
		return nil
	}
	return writeReport(s.report, restartsPart, out.String())
}

// bare opens the nodes and doors of a world.
func bare(dir string, ranks int) (*world, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w := &world{clients: make([]*client.Client, ranks)}
	return w, w.openNodes(setup{System: "esperd", Ranks: ranks, Store: "wal", Dir: dir})
}

// connect connects the clients of all ranks at once, and has rank 0 decide. It
// returns when the last rank began, and the round's first decision was there.
func (w *world) connect(ctx context.Context, start string, slots []api.SlotRequest) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	var mu sync.Mutex
	var last, decided time.Time
	err = w.onRanks(func(rank int) (err error) {
		mu.Lock()
		last = time.Now()
		mu.Unlock()
		w.clients[rank], err = client.Connect(ctx, w.doors[rank].Socket(), client.Options{Rank: uint64(rank), World: uint64(len(w.nodes)),
			Fingerprint: start, Mode: events.ModeFollow, Slots: slots})
		if err != nil {
			return err
		}
		_, err = w.clients[rank].StepEpoch(ctx, 1+w.clients[rank].Session().Epoch)
		if rank == 0 {
			decided = time.Now()
		}
		return err
	})
	return decided.Sub(last), err
}

// newRounds measures from the last rank's registration to the first decision,
// where the esperds stay, and where they are started anew with the trainers.
func newRounds(ctx context.Context, dir string, row func(string, ...any)) error {
	slots := []api.SlotRequest{{Name: slot}}
	dir = filepath.Join(dir, "rounds")
	var settled, anew []time.Duration
	w, err := bare(dir, restartRanks)
	if err != nil {
		return err
	}
	defer func() { _ = w.close() }()
	if _, err := w.connect(ctx, "first", slots); err != nil {
		return fmt.Errorf("the first round: %w", err)
	}
	for i := range restartRounds {
		for _, c := range w.clients {
			_ = c.Close()
		}
		took, err := w.connect(ctx, fmt.Sprint("settled ", i), slots)
		if err != nil {
			return fmt.Errorf("round %d in a world that stands: %w", i, err)
		}
		settled = append(settled, took)
	}
	for i := range restartRounds {
		if err := w.close(); err != nil {
			return err
		}
		if w, err = bare(dir, restartRanks); err != nil {
			return err
		}
		took, err := w.connect(ctx, fmt.Sprint("anew ", i), slots)
		if err != nil {
			return fmt.Errorf("start %d: %w", i, err)
		}
		anew = append(anew, took)
	}
	told := func(list []time.Duration) string {
		return fmt.Sprintf("%s ms at the median, %s at most, of %d", ms(quantile(list, .5)), ms(quantile(list, 1)), len(list))
	}
	row("first decision of a new round after the last of %d ranks registered, in a world that stands | %s", restartRanks, told(settled))
	row("the same while the esperds are being started, too (from the last trainer's start) | %s", told(anew))
	return nil
}

// marks measures marks with some slots in use, and the resume of a large one by
// all ranks at once.
func marks(ctx context.Context, dir string, row func(string, ...any)) error {
	for _, n := range []int{1, 10, 1000} {
		if err := marksOf(ctx, filepath.Join(dir, fmt.Sprint("marks", n)), n, row); err != nil {
			return fmt.Errorf("%d slots: %w", n, err)
		}
	}
	return nil
}

func marksOf(ctx context.Context, dir string, slots int, row func(string, ...any)) (err error) {
	w, err := bare(dir, markRanks)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var names []api.SlotRequest
	for i := range slots {
		names = append(names, api.SlotRequest{Name: fmt.Sprintf("r%dc%d", i/10, i%10)})
	}
	if _, err := w.connect(ctx, "first", names); err != nil {
		return err
	}
	for _, s := range names {
		if _, err := w.clients[0].Germinate(ctx, s.Name, api.GerminateRequest{Blueprint: "conv"}); err != nil {
			return err
		}
		w.clients[0].Observe(s.Name, readings(slots))
	}
	if err := w.onRanks(func(rank int) error {
		_, err := w.clients[rank].StepEpoch(ctx, 1)
		return err
	}); err != nil {
		return err
	}
	mark, err := w.clients[0].Checkpoint(ctx)
	if err != nil {
		return err
	}
	var took []time.Duration
	for range resumes {
		began := time.Now()
		if err := w.onRanks(func(rank int) error {
			_, err := w.clients[rank].Resume(ctx, mark.Mark)
			return err
		}); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	row("a mark with %d slots in use | %d bytes", slots, mark.Bytes)
	row("its resume by %d ranks at once, until the last has its answer | %s ms at the median, %s at most, of %d", markRanks, ms(quantile(took, .5)), ms(quantile(took, 1)), resumes)
	return nil
}
