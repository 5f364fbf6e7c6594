package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/esperd/esperd/events"
)

// faultsInTests is how many seeds the test command takes; ESPERD_AUDIT_FAULTS
// asks for another number, and ESPERD_AUDIT_SEED for a single one.
const faultsInTests = 500

// TestEveryFaultIsFound damages one rank's store in one way at a random place,
// over and over. Whatever audit does not report has to be harmless: the file
// then holds exactly what it held, for bbolt too. What it reports has to be the
// place of the damage, and no run of it may panic or hang.
func TestEveryFaultIsFound(t *testing.T) {
	n, first := faultsInTests, 0
	if s := os.Getenv("ESPERD_AUDIT_FAULTS"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	if s := os.Getenv("ESPERD_AUDIT_SEED"); s != "" {
		var err error
		first, err = strconv.Atoi(s)
		require.NoError(t, err)
		n = 1
	}
	if testing.Short() {
		n = min(n, 50)
	}
	w := newFaultWorld(t)
	outcomes := map[string]int{}
	for seed := first; seed < first+n; seed++ {
		f := faultKinds[seed%len(faultKinds)]
		what := w.inject(t, seed, f)
		outcomes[f.name+": "+what]++
		if t.Failed() {
			t.Fatalf("ESPERD_AUDIT_SEED=%d go test ./audit -run TestEveryFaultIsFound", seed)
		}
	}
	for _, f := range faultKinds {
		if n >= 4*len(faultKinds) {
			require.NotZero(t, outcomes[f.name+": reported"], f.name)
		}
	}
	t.Log(outcomes)
}

// faultWorld is the good stores of two ranks.
type faultWorld struct {
	other   string // rank 0's directory, which stays good
	good    []byte // rank 1's history
	content *storeContent
	records []events.Record
	calls   []*events.CallID
	images  map[uint64][]byte
	where   map[int]uint64 // byte of the file -> entry whose record it is part of
	dir     string
}

func newFaultWorld(t *testing.T) *faultWorld {
	l := newLog(t, 77, "run", 2)
	l.train(150)
	w := &faultWorld{dir: t.TempDir()}
	w.other = (&replica{rank: 0, entries: l.entries, images: 32}).write(t, t.TempDir())
	r := &replica{rank: 1, entries: l.entries, images: 32}
	path := filepath.Join(r.write(t, t.TempDir()), historyName)
	var err error
	w.good, err = os.ReadFile(path)
	require.NoError(t, err)
	w.content, err = contentOf(path)
	require.NoError(t, err)
	w.records, w.calls, w.images = r.rows(t)
	w.where = map[int]uint64{}
	for _, rec := range w.records { // an entry's bytes are found as they are
		if at := bytes.LastIndex(w.good, rec.Entry); at >= 0 {
			for i := range rec.Entry {
				w.where[at+i] = rec.Index
			}
		}
	}
	require.Equal(t, Consistent, auditOf(t, w.other, w.write(t, w.good)).Outcome)
	return w
}

// write makes rank 1's directory with a file of these bytes.
func (w *faultWorld) write(t *testing.T, b []byte) string {
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "node.json"), []byte(fmt.Sprintf(`{"format":1,"node":%q}`, nodeOf(1))), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, historyName), b, 0o600))
	return w.dir
}

// injected is what a fault did: the entry that it hit, 0 if that is not one's or
// not known.
type injected struct {
	bytes []byte
	entry uint64
	// alone: by itself the store is a right one, of a log that ends with one more
	// entry, which every replica refuses.
	alone bool
}

type faultKind struct {
	name string
	make func(t *testing.T, w *faultWorld, rng *rand.Rand) injected
}

var faultKinds = []faultKind{
	{"one bit", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		b, at := slices.Clone(w.good), rng.IntN(len(w.good))
		b[at] ^= 1 << rng.IntN(8)
		return injected{bytes: b, entry: w.where[at]}
	}},
	{"bytes swapped", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		b, at := slices.Clone(w.good), rng.IntN(len(w.good)-1)
		for range 1000 { // two that are not the same
			if b[at] != b[at+1] {
				break
			}
			at = rng.IntN(len(w.good) - 1)
		}
		b[at], b[at+1] = b[at+1], b[at]
		return injected{bytes: b, entry: w.where[at]}
	}},
	{"bit in what is used", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		b := slices.Clone(w.good)
		rec := w.records[rng.IntN(len(w.records))]
		at := bytes.LastIndex(b, rec.Entry) - 104 + rng.IntN(104+len(rec.Entry)+4) // the record with its digests and checksum
		b[at] ^= 1 << rng.IntN(8)
		return injected{bytes: b, entry: rec.Index}
	}},
	{"truncated", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		return injected{bytes: w.good[:rng.IntN(len(w.good))]}
	}},
	{"bit in a record, checksum right", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		rec := w.records[rng.IntN(len(w.records))]
		return injected{bytes: w.edited(t, func(tx *bbolt.Tx) error {
			v := bytes.Clone(recordsOf(tx).Get(key(rec.Index)))
			for { // the raft index is nobody's: nothing depends on it
				at := rng.IntN(len(v) - 4)
				if at >= 96 && at < 104 {
					continue
				}
				v[at] ^= 1 << rng.IntN(8)
				break
			}
			return recordsOf(tx).Put(key(rec.Index), sealed(rec.Index, v))
		}), entry: rec.Index}
	}},
	{"entry duplicated", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		at := rng.IntN(len(w.records))
		entries := w.entries()
		return w.rebuilt(t, rng, slices.Insert(entries, at+1, entries[at]), uint64(at)+2, at)
	}},
	{"entries reordered", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		at := rng.IntN(len(w.records) - 1)
		entries := w.entries()
		entries[at], entries[at+1] = entries[at+1], entries[at]
		return w.rebuilt(t, rng, entries, uint64(at)+1, at)
	}},
	{"entry removed", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		at := rng.IntN(len(w.records))
		return w.rebuilt(t, rng, slices.Delete(w.entries(), at, at+1), uint64(at)+1, at)
	}},
	{"record gone", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		index := 1 + rng.Uint64N(uint64(len(w.records)))
		return injected{bytes: w.edited(t, func(tx *bbolt.Tx) error { return recordsOf(tx).Delete(key(index)) }), entry: index}
	}},
	{"index of calls", func(t *testing.T, w *faultWorld, rng *rand.Rand) injected {
		return injected{bytes: w.edited(t, func(tx *bbolt.Tx) error {
			calls := tx.Bucket([]byte("calls"))
			n, pick := 0, rng.IntN(calls.Stats().KeyN)
			c := calls.Cursor()
			k, v := c.First()
			for ; n < pick; n++ {
				k, v = c.Next()
			}
			k, v = bytes.Clone(k), bytes.Clone(v)
			if rng.IntN(2) == 0 {
				return calls.Delete(k)
			}
			binary.BigEndian.PutUint64(v, 1+rng.Uint64N(uint64(len(w.records))))
			if bytes.Equal(v[:8], calls.Get(k)[:8]) {
				v[7] ^= 1
			}
			binary.BigEndian.PutUint32(v[8:], crc32.Update(crc32.Checksum(k, castagnoli), castagnoli, v[:8]))
			return calls.Put(k, v)
		})}
	}},
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func key(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

func recordsOf(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket([]byte("records")) }

// sealed gives a record a right checksum.
func sealed(index uint64, v []byte) []byte {
	end := len(v) - 4
	binary.BigEndian.PutUint32(v[end:], crc32.Update(crc32.Checksum(key(index), castagnoli), castagnoli, v[:end]))
	return v
}

func (w *faultWorld) entries() [][]byte {
	out := make([][]byte, len(w.records))
	for i := range out {
		out[i] = w.records[i].Entry
	}
	return out
}

// edited changes a copy of the store in a transaction.
func (w *faultWorld) edited(t *testing.T, change func(*bbolt.Tx) error) []byte {
	path := filepath.Join(t.TempDir(), "edited.db")
	require.NoError(t, os.WriteFile(path, w.good, 0o600))
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, FreelistType: bbolt.FreelistMapType})
	require.NoError(t, err)
	require.NoError(t, db.Update(change))
	require.NoError(t, db.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	return b
}

// rebuilt stores other entries: with the records' old chain, as if records had
// been moved, or with a new one, as if the log had been another.
func (w *faultWorld) rebuilt(t *testing.T, rng *rand.Rand, entries [][]byte, entry uint64, at int) injected {
	forged := rng.IntN(2) == 0
	path := filepath.Join(t.TempDir(), historyName)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, FreelistType: bbolt.FreelistMapType})
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o600))
	chain := events.Digest{}
	require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"format", "records", "calls", "images", "gaps"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		if err := tx.Bucket([]byte("format")).Put([]byte("version"), key(1)); err != nil {
			return err
		}
		for i, b := range entries {
			index := uint64(i) + 1
			from := w.records[slices.IndexFunc(w.records, func(r events.Record) bool { return bytes.Equal(r.Entry, b) })]
			if chain = events.Chain(chain, index, b); !forged {
				chain = from.Chain
			}
			v := append(append(append(bytes.Clone(chain[:]), from.Lifecycle[:]...), from.Bookkeeping[:]...), make([]byte, 8)...)
			v = append(append(v, b...), 0, 0, 0, 0)
			if err := recordsOf(tx).Put(key(index), sealed(index, v)); err != nil {
				return err
			}
		}
		for k, v := range w.content.calls { // those of the entries that were there
			if err := tx.Bucket([]byte("calls")).Put([]byte(k), []byte(v)); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(t, db.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	return injected{bytes: b, entry: entry, alone: forged && int(entry) > len(w.records)}
}

// inject audits a damaged store by itself and beside a good one.
func (w *faultWorld) inject(t *testing.T, seed int, kind faultKind) string {
	f := kind.make(t, w, rand.New(rand.NewPCG(uint64(seed), 1)))
	dir := w.write(t, f.bytes)
	began := time.Now()
	pair := auditOf(t, w.other, dir)
	alone := auditOf(t, dir)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the audits took %s", took)
	}
	if f.alone && alone.Outcome == Consistent && pair.Outcome != Consistent {
		return "reported"
	}
	if pair.Outcome == Consistent || alone.Outcome == Consistent {
		got, err := contentOf(filepath.Join(dir, historyName))
		if err != nil || !got.same(w.content) {
			t.Errorf("%s, seed %d: audit says pair %s, alone %s, but the store holds something else (%v)", kind.name, seed, pair.Outcome, alone.Outcome, err)
		}
		if pair.Outcome != alone.Outcome {
			t.Errorf("%s, seed %d: pair %s, alone %s", kind.name, seed, text(pair), text(alone))
		}
		return "harmless"
	}
	for _, r := range []*Report{pair, alone} {
		if f.entry == 0 || r.Status == 2 && len(r.Findings) == 0 {
			continue
		}
		if !slices.ContainsFunc(r.Findings[:1], func(g Finding) bool { return g.Index == f.entry }) {
			if !slices.Contains([]string{"entry duplicated"}, kind.name) || r == pair {
				t.Errorf("%s, seed %d: entry %d was damaged, and the report is %s", kind.name, seed, f.entry, text(r))
			}
		}
	}
	return "reported"
}

// storeContent is all that a history's file holds, as bbolt reads it.
type storeContent struct{ format, records, calls, images, gaps map[string]string }

func (c *storeContent) same(o *storeContent) bool {
	eq := func(a, b map[string]string) bool {
		if len(a) != len(b) {
			return false
		}
		for k, v := range a {
			if w, ok := b[k]; !ok || v != w {
				return false
			}
		}
		return true
	}
	return eq(c.format, o.format) && eq(c.records, o.records) && eq(c.calls, o.calls) && eq(c.images, o.images) && eq(c.gaps, o.gaps)
}

// contentOf reads everything through bbolt and lets it check its structure. It
// works on a copy: esperd has to be able to open the file, too.
func contentOf(path string) (out *storeContent, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("bbolt: %v", p)
		}
	}()
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "content-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path = filepath.Join(dir, historyName)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, err
	}
	h, err := events.OpenHistory(path, events.HistoryOptions{NoSync: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if err := h.Abandon(); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, FreelistType: bbolt.FreelistMapType, PreLoadFreelist: true})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	out = &storeContent{}
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		for name, into := range map[string]*map[string]string{"format": &out.format, "records": &out.records, "calls": &out.calls, "images": &out.images, "gaps": &out.gaps} {
			b := tx.Bucket([]byte(name))
			if b == nil {
				return errors.New("no bucket " + name)
			}
			*into = map[string]string{}
			if err := b.ForEach(func(k, v []byte) error { (*into)[string(k)] = string(v); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}
