package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/esperd/esperd/api"
)

// Chain reads /v1/chain: what the entries from..to come to. The answer may be
// about fewer of them.
func (a *Admin) Chain(ctx context.Context, from, to uint64) (*api.Chain, error) {
	return read[api.Chain](ctx, a, "/v1/chain?from="+strconv.FormatUint(from, 10)+"&to="+strconv.FormatUint(to, 10))
}

// Records reads /v1/records: at most limit entries (1 to 10,000) from an index
// on, as the log keeps them. Long ones make the answer shorter.
func (a *Admin) Records(ctx context.Context, from, limit uint64) ([]api.Record, error) {
	resp, err := a.get(ctx, "/v1/records?from="+strconv.FormatUint(from, 10)+"&limit="+strconv.FormatUint(limit, 10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, readBody(resp, nil)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, lineBytesMax)
	var out []api.Record
	for lines.Scan() {
		var r api.Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if out = append(out, r); uint64(len(out)) > limit {
			return nil, fmt.Errorf("%w: more than the %d records asked for", errUnreadable, limit)
		}
	}
	return out, lines.Err()
}
