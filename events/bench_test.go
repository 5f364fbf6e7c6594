package events

import (
	"os"
	"testing"
)

func benchNum(f float64) *Num { n := Num(f); return &n }

// advanceEntry is what a busy log mostly holds: an advance that passed.
func advanceEntry() *Entry {
	no := false
	return &Entry{
		Version: 1, Kind: KindCall, Node: "00112233445566778899aabbccddeeff", Round: 3, Predecessor: 41_233,
		Key: &Key{Round: 3, Model: "main", Generation: 1, Call: 8_021, Fence: 377, Op: OpAdvance, Slot: "r0c1", Seed: 4, Epoch: 376,
			Args: ArgsHash{1, 2, 3}},
		Site: "train.py:188", Lifecycle: Digest{1}, Bookkeeping: Digest{2}, Time: 1_790_000_000_123_456_789,
		Events: []Event{
			{Observed: &Observed{Slot: "r0c1", Seed: 4, Metrics: Metrics{Epochs: 12, EpochsInStage: 5, Accuracy: 81.73, AccuracyBest: 81.9,
				AccuracyFirst: 77.25, AccuracyStage: 79.1, GradientRatio: benchNum(0.137), GradientNorm: benchNum(1.883), Health: benchNum(0.94),
				Exploding: &no, Vanishing: &no, Tick: 377}}},
			{GateEvaluated: &GateEvaluated{Slot: "r0c1", Seed: 4, Target: StageBlending, Verdict: Verdict{Gate: G2, Passed: true, Score: 0.526,
				ChecksPassed: []string{"improvement_2.63%", "gradient_ratio_0.137", "gradient_health_0.94"}}}},
			{StageChanged: &StageChanged{Slot: "r0c1", Seed: 4, From: StageTraining, To: StageBlending, AccuracyDelta: 4.48, EpochsInStage: 5}},
			{AmplitudeSet: &AmplitudeSet{Slot: "r0c1", Seed: 4, Amplitude: Amplitude{Alpha: 0.2, Algorithm: AlgorithmAdd,
				Controller: Controller{Alpha: 0.2, Target: 0.7, Mode: ModeUp, Curve: CurveSigmoid, Steepness: 12, Total: 5, Done: 1}}}},
		},
	}
}

func BenchmarkDecode(b *testing.B) {
	raw, err := Encode(advanceEntry())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkDecodeGeneral(b *testing.B) {
	raw, err := Encode(advanceEntry())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := Unmarshal(raw, new(Entry)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	e := advanceEntry()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encMode.Marshal(e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChain(b *testing.B) {
	raw, err := Encode(advanceEntry())
	if err != nil {
		b.Fatal(err)
	}
	var d Digest
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		d = Chain(d, 7, raw)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// bigHistory returns an open history of n typical entries.
func bigHistory(b *testing.B, n uint64) *History {
	b.Helper()
	raw, err := Encode(advanceEntry())
	if err != nil {
		b.Fatal(err)
	}
	h := openHistory(b, tempHistory(b), HistoryOptions{NoSync: true})
	var chain Digest
	for i := uint64(1); i <= n; i++ {
		chain = Chain(chain, i, raw)
		if err := h.Append(Record{Index: i, Chain: chain, RaftIndex: i, Entry: raw}, &CallID{Round: 1, Model: "main", Call: i}); err != nil {
			b.Fatal(err)
		}
	}
	if err := h.Flush(); err != nil {
		b.Fatal(err)
	}
	return h
}

func BenchmarkHistoryRange(b *testing.B) {
	const n = 100_000
	h := bigHistory(b, n)
	for _, decode := range []bool{false, true} {
		b.Run(map[bool]string{false: "verify", true: "verify+decode"}[decode], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				err := h.Range(1, n, func(r Record) error {
					if decode {
						_, err := Decode(r.Entry)
						return err
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkHistoryAppend(b *testing.B) {
	raw, err := Encode(advanceEntry())
	if err != nil {
		b.Fatal(err)
	}
	h := openHistory(b, tempHistory(b), HistoryOptions{})
	var chain Digest
	var i uint64
	b.ReportAllocs()
	for b.Loop() {
		i++
		chain = Chain(chain, i, raw)
		if err := h.Append(Record{Index: i, Chain: chain, RaftIndex: i, Entry: raw}, &CallID{Round: 1, Model: "main", Call: i}); err != nil {
			b.Fatal(err)
		}
	}
	if err := h.Flush(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkHistoryOpen(b *testing.B) {
	const n = 300_000
	h := bigHistory(b, n)
	path := h.path
	if err := h.Close(); err != nil {
		b.Fatal(err)
	}
	if info, err := os.Stat(path); err == nil {
		b.ReportMetric(float64(info.Size())/n, "file-B/entry")
	}
	for b.Loop() {
		h, err := OpenHistory(path, HistoryOptions{NoSync: true})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = h.Close()
		b.StartTimer()
	}
}
