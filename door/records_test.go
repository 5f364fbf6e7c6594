package door

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func TestChainAndRecords(t *testing.T) {
	b, _ := longLog(t, 100)
	s := b.servers[0]
	records, err := s.records(1, 10_000)
	require.NoError(t, err)
	require.Len(t, records, 10)
	var prev events.Digest
	for _, r := range records {
		e, err := events.Decode(r.Entry)
		require.NoError(t, err)
		require.Equal(t, r.Index-1, e.Predecessor)
		require.Equal(t, events.Chain(prev, r.Index, r.Entry), r.Chain)
		prev = r.Chain
	}
	some, err := s.records(4, 3)
	require.NoError(t, err)
	require.Equal(t, records[3:6], some)

	all, err := s.chain(1, 10)
	require.NoError(t, err)
	require.Equal(t, prev, all.Chain)
	require.Equal(t, s.replica.State().Bookkeeping(), all.Bookkeeping)
	sum := sha256.New()
	for _, r := range records[2:7] {
		sum.Write(append(append(r.Chain[:], r.Lifecycle[:]...), r.Bookkeeping[:]...))
	}
	part, err := s.chain(3, 7)
	require.NoError(t, err)
	require.Equal(t, events.Digest(sum.Sum(nil)), part.Sum)
	require.Equal(t, records[1].Chain, part.Before)
	require.Equal(t, records[6].Chain, part.Chain)
	beyond, err := s.chain(3, 1<<40)
	require.NoError(t, err)
	require.EqualValues(t, 10, beyond.To)
}

func TestChainAndRecordsRefuse(t *testing.T) {
	b, _ := longLog(t, 100)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		b.muxes[0].ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	for path, status := range map[string]int{
		"/v1/chain":                     422,
		"/v1/chain?from=0&to=3":         422,
		"/v1/chain?from=3&to=2":         422,
		"/v1/chain?from=11&to=12":       503,
		"/v1/chain?from=-1&to=12":       422,
		"/v1/records":                   422,
		"/v1/records?from=11":           503,
		"/v1/records?from=1&limit=0":    422,
		"/v1/records?from=1&limit=9999": 200,
	} {
		got, body := get(path)
		require.Equal(t, status, got, "%s: %s", path, body)
	}
	_, body := get("/v1/records?from=2&limit=2")
	lines := strings.Split(strings.TrimSpace(body), "\n")
	require.Len(t, lines, 2)
	var r api.Record
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &r))
	require.EqualValues(t, 3, r.Index)
}
