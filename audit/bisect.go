package audit

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// firstParting returns the first index in low+1..high at which two of the
// histories have another chain, where they agree at low and do not at high. It
// takes a link of each for every halving.
func firstParting(ctx context.Context, hs []*history, low, high uint64) (uint64, error) {
	for high-low > 1 {
		mid := low + (high-low)/2
		same, err := sameChain(ctx, hs, mid)
		if err != nil {
			return 0, err
		}
		if same {
			low = mid
		} else {
			high = mid
		}
	}
	return high, nil
}

func sameChain(ctx context.Context, hs []*history, index uint64) (bool, error) {
	var first events.Digest
	for i, h := range hs {
		l, err := h.place.Link(ctx, index)
		if err != nil {
			return false, &placeError{h, fmt.Errorf("entry %d: %w", index, err)}
		}
		if i == 0 {
			first = l.Chain
		} else if l.Chain != first {
			return false, nil
		}
	}
	return true, nil
}

// placeError says which place could not be asked.
type placeError struct {
	history *history
	error
}

func (e *placeError) Unwrap() error { return e.error }

// sum returns what the entries from..to of a place come to (api.Chain.Sum).
func (h *history) sum(ctx context.Context, from, to uint64) (events.Digest, error) {
	if r, ok := h.place.(*remotePlace); ok {
		return r.Sum(ctx, from, to)
	}
	if block := (from - 1) / api.ChainMax; from%api.ChainMax == 1 && to == from+api.ChainMax-1 && block < uint64(len(h.sums.whole)) && !h.sums.whole[block].IsZero() {
		return h.sums.whole[block], nil
	}
	sum := sha256.New()
	err := h.place.Records(ctx, from, to, func(b *events.Batch) error {
		for i := range b.Records {
			sumRecord(sum, &b.Records[i])
		}
		b.Release()
		return nil
	})
	return events.Digest(sum.Sum(nil)), err
}

// firstOtherDigest returns the first index in from..to after which the replicas
// of two histories with the same entries had another state; 0 if none.
func firstOtherDigest(ctx context.Context, a, b *history, from, to uint64) (uint64, error) {
	differ := func(from, to uint64) (bool, error) {
		x, err := a.sum(ctx, from, to)
		if err != nil {
			return false, &placeError{a, err}
		}
		y, err := b.sum(ctx, from, to)
		if err != nil {
			return false, &placeError{b, err}
		}
		return x != y, nil
	}
	for start := from; start <= to; {
		end := min(to, (start-1)/api.ChainMax*api.ChainMax+api.ChainMax)
		other, err := differ(start, end)
		if err != nil {
			return 0, err
		}
		if !other {
			start = end + 1
			continue
		}
		low, high := start-1, end // the sums of start..low are equal, those of start..high are not
		for high-low > 1 {
			mid := low + (high-low)/2
			if other, err = differ(start, mid); err != nil {
				return 0, err
			}
			if other {
				high = mid
			} else {
				low = mid
			}
		}
		return high, nil
	}
	return 0, nil
}
