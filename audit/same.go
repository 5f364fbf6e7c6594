package audit

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// errOther ends a look at a history that is not the replayed one.
var errOther = errors.New("it is another history")

// verifySame checks a history against one that was replayed without a fault and
// is at least as long, and reports whether that was enough. Equal links are equal
// bytes, and equal bytes replay alike: so what has to be compared are the links,
// which are computed from this history's own bytes, the digests after every
// entry, the images and the index of calls. Whatever is not the same is left to a
// replay, which says what is wrong.
func verifySame(ctx context.Context, h, replayed *history, progress func(done uint64)) bool {
	p, ok := h.place.(*dirPlace)
	if !ok || !replayed.faultless() || h.about.From > 1 || h.about.Head > replayed.good || h.about.Head == 0 {
		return false
	}
	if p.bad != nil || p.reader.Extent().TornHeader || !sameImages(p, replayed) {
		return false
	}
	s := &history{place: h.place, about: h.about}
	err := stream(ctx, h.place, 1, h.about.Head, events.Digest{}, false, func(e *streamed) error {
		s.good, s.chain = e.Record.Index, e.Record.Chain
		s.sums.add(&e.Record)
		if block := len(s.sums.whole) - 1; s.good%api.ChainMax == 0 && s.sums.whole[block] != replayed.sums.whole[block] {
			return errOther
		}
		if s.good%4096 == 0 {
			progress(s.good)
		}
		return nil
	})
	if err != nil || !sameEnd(ctx, s, replayed) || !sameCalls(p, replayed) || p.reader.Check() != nil {
		return false
	}
	h.good, h.chain, h.sums, h.replayed, h.state = s.good, s.chain, s.sums, s.good, replayed.state
	h.sameAs = replayed.about.Place
	progress(h.good)
	return true
}

// faultless: every entry was replayed from the first on, and all was as it should
// be.
func (h *history) faultless() bool {
	_, dir := h.place.(*dirPlace)
	return dir && h.about.From == 1 && h.replayed == h.about.Head && h.good == h.about.Head && len(h.faults) == 0 && h.stopped == nil
}

// sameImages: every image is one that the replay passed, too.
func sameImages(p *dirPlace, replayed *history) bool {
	known := replayed.place.(*dirPlace).images
	for _, img := range p.images {
		if img.Err != nil || img.Index > p.about.Head || !slices.ContainsFunc(known, func(k events.Image) bool { return k.Index == img.Index && bytes.Equal(k.Bytes, img.Bytes) }) {
			return false
		}
	}
	return true
}

// sameEnd compares the entries after the last whole block.
func sameEnd(ctx context.Context, s, replayed *history) bool {
	from := s.good/api.ChainMax*api.ChainMax + 1
	if from > s.good {
		return true
	}
	want, err := replayed.sum(ctx, from, s.good)
	return err == nil && want == events.Digest(s.sums.part.Sum(nil))
}

// sameCalls compares the two indexes of calls, up to the end of this history.
func sameCalls(p *dirPlace, replayed *history) bool {
	head := p.about.Head
	want, got := replayed.calls, callCheck{}
	if head < replayed.good {
		want = callCheck{}
		err := replayed.place.(*dirPlace).reader.Calls(func(id events.CallID, index uint64) error {
			if index <= head {
				want.add(id, index)
			}
			return nil
		})
		if err != nil {
			return false
		}
	}
	err := p.reader.Calls(func(id events.CallID, index uint64) error {
		switch {
		case index <= head:
			got.add(id, index)
		case !p.about.Live:
			return errOther
		}
		return nil
	})
	return err == nil && want == got
}
