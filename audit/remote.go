package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// remotePage is how many records are asked for at once.
const remotePage = 4096

// remotePlace is an esperd, by its admin door.
type remotePlace struct {
	about   About
	admin   *client.Admin
	timeout time.Duration
}

func openRemote(ctx context.Context, url string, timeout time.Duration) (Place, error) {
	p := &remotePlace{about: About{Place: url, Kind: "esperd", Live: true}, admin: client.NewAdmin(url), timeout: timeout}
	s, err := ask(ctx, p, p.admin.State)
	if err != nil {
		p.admin.Close()
		return nil, err
	}
	a := &p.about
	a.Node, a.Rank, a.Run, a.Lineage, a.Version, a.Problem = s.Node, &s.Rank, s.Run, s.Lineage, s.Version, s.Problem
	a.From, a.Head, a.HeadChain = max(s.CompleteFrom, 1), s.Index, s.Chain
	if a.From > 1 {
		l, err := p.link(ctx, a.From, a.From)
		if err != nil {
			p.admin.Close()
			return nil, err
		}
		a.FirstChain = l.Before
	}
	return p, nil
}

// ask bounds one question.
func ask[T any](ctx context.Context, p *remotePlace, question func(context.Context) (T, error)) (T, error) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	out, err := question(ctx)
	if err != nil && whole.Err() != nil {
		err = fmt.Errorf("interrupted before %s answered: %w", p.about.Place, context.Cause(whole))
	} else if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("%s did not answer within %s: is its process stopped?", p.about.Place, p.timeout)
	} else if err != nil {
		err = fmt.Errorf("%s: %w", p.about.Place, err)
	}
	return out, err
}

func (p *remotePlace) About() *About { return &p.about }

func (p *remotePlace) Close() error {
	p.admin.Close()
	return nil
}

func (p *remotePlace) Records(ctx context.Context, from, to uint64, fn func(*events.Batch) error) error {
	for next := max(from, 1); next <= to; {
		records, err := ask(ctx, p, func(ctx context.Context) ([]api.Record, error) {
			return p.admin.Records(ctx, next, min(remotePage, to-next+1))
		})
		if err != nil {
			return err
		}
		b := new(events.Batch)
		for i := range records {
			if records[i].Index != next {
				break
			}
			b.Records = append(b.Records, recordOf(&records[i]))
			next++
		}
		if len(b.Records) == 0 {
			return fmt.Errorf("%s: it was asked for entry %d and sent another: it is no esperd, or not one of this version", p.about.Place, next)
		}
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}

// Refresh implements grower: a link says where the log ends, and is short.
func (p *remotePlace) Refresh(ctx context.Context) error {
	if p.about.Head == 0 { // it has none yet
		s, err := ask(ctx, p, p.admin.State)
		if err == nil {
			p.about.Run, p.about.Lineage, p.about.Head, p.about.From = s.Run, s.Lineage, s.Index, max(s.CompleteFrom, 1)
		}
		return err
	}
	c, err := p.link(ctx, p.about.From, p.about.From)
	if err != nil {
		return err
	}
	p.about.Head, p.about.From = c.Head, max(c.CompleteFrom, 1)
	if p.about.From == 1 {
		p.about.FirstChain = events.Digest{}
	}
	return nil
}

func (p *remotePlace) link(ctx context.Context, from, to uint64) (*api.Chain, error) {
	return ask(ctx, p, func(ctx context.Context) (*api.Chain, error) { return p.admin.Chain(ctx, from, to) })
}

func (p *remotePlace) Link(ctx context.Context, index uint64) (Link, error) {
	switch {
	case index == 0:
		return Link{}, nil
	case index == p.about.From-1:
		return Link{Index: index, Chain: p.about.FirstChain}, nil
	}
	c, err := p.link(ctx, index, index)
	if err != nil {
		return Link{}, err
	}
	return Link{Index: index, Chain: c.Chain, Lifecycle: c.Lifecycle, Bookkeeping: c.Bookkeeping}, nil
}

// Sum is what a stretch comes to, of at most api.ChainMax entries.
func (p *remotePlace) Sum(ctx context.Context, from, to uint64) (events.Digest, error) {
	c, err := p.link(ctx, from, to)
	if err != nil {
		return events.Digest{}, err
	}
	if c.From != from || c.To != to {
		return events.Digest{}, fmt.Errorf("%s: it was asked about entries %d to %d and answered about %d to %d", p.about.Place, from, to, c.From, c.To)
	}
	return c.Sum, nil
}
