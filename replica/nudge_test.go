package replica

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// nudgingCluster has a CommitTimeout of an hour, so that a follower that
// applies within a minute was told by a nudger.
func nudgingCluster(t *testing.T, nudging bool) (c *testCluster, stop func()) {
	c = startCluster(t, 3, time.Hour)
	var nudgers []*nudger
	for i, r := range c.rafts {
		n := newNudger(c.nodes[i].Transport(), raft.ServerID(memAddr(i)), raft.ServerAddress(memAddr(i)), discard, time.Millisecond)
		nudgers = append(nudgers, n)
		if nudging {
			c.fsms[i].applied = func(l *raft.Log) {
				if string(l.Data) == memAddr(i) { // its writer led its term
					n.Applied(l.Index, l.Term, r.GetConfiguration().Configuration().Servers)
				}
			}
		}
	}
	return c, func() {
		for _, n := range nudgers {
			n.Close()
		}
		c.stop()
	}
}

func (c *testCluster) applied() (out []int) {
	for _, f := range c.fsms {
		out = append(out, f.count)
	}
	return out
}

func TestNudgerMakesFollowersApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := nudgingCluster(t, true)
		defer stop()
		leader := c.leader()
		for i := range 10 {
			start := time.Now()
			require.NoError(t, c.rafts[leader].Apply([]byte(memAddr(leader)), time.Second).Error())
			time.Sleep(15 * time.Millisecond) // a few resends
			synctest.Wait()
			require.Equal(t, []int{i + 1, i + 1, i + 1}, c.applied())
			require.Equal(t, 15*time.Millisecond, time.Since(start))
			time.Sleep(time.Minute)
		}
		require.Equal(t, leader, c.leader(), "nobody stepped down")
	})
}

// Without it they do not, which is why it exists.
func TestFollowersWaitForCommitTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := nudgingCluster(t, false)
		defer stop()
		leader := c.leader()
		require.NoError(t, c.rafts[leader].Apply([]byte(memAddr(leader)), time.Second).Error())
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Contains(t, c.applied(), 0, "the follower whose answer committed the entry cannot know")
	})
}

// The same in a burst on links of 1 to 3 ms, on which nudges overtake entries:
// the slow follower has to be told again.
func TestNudgerOnSlowLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := nudgingCluster(t, true)
		defer stop()
		leader := c.leader()
		c.net.SetDelay(func(from, to string) time.Duration { // each pair its own, both ways
			return time.Duration(1+(int(from[4])+int(to[4]))%3) * time.Millisecond
		})
		var last raft.ApplyFuture
		for range 10 {
			last = c.rafts[leader].Apply([]byte(memAddr(leader)), time.Second)
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, last.Error())
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, []int{10, 10, 10}, c.applied())
	})
}

// A nudge that arrives after leadership has moved disturbs nobody.
func TestNudgeAfterLeadershipMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := nudgingCluster(t, true)
		defer stop()
		old := c.leader()
		require.NoError(t, c.rafts[old].Apply([]byte(memAddr(old)), time.Second).Error())
		synctest.Wait()
		index, term := c.fsms[old].last, c.rafts[old].CurrentTerm()
		require.NoError(t, c.rafts[old].LeadershipTransfer().Error())
		next := c.leader(old)
		newTerm := c.rafts[next].CurrentTerm()
		require.Greater(t, newTerm, term)

		late := newNudger(c.nodes[old].Transport(), raft.ServerID(memAddr(old)), raft.ServerAddress(memAddr(old)), discard, time.Millisecond)
		late.Applied(index, term, c.rafts[old].GetConfiguration().Configuration().Servers)
		time.Sleep(time.Minute)
		late.Close()
		require.Equal(t, raft.Leader, c.rafts[next].State())
		require.Equal(t, newTerm, c.rafts[next].CurrentTerm())
		for _, r := range c.rafts {
			addr, _ := r.LeaderWithID()
			require.Equal(t, raft.ServerAddress(memAddr(next)), addr)
		}
	})
}

// scriptedTransport answers AppendEntries as a test says.
type scriptedTransport struct {
	raft.Transport // nil: nothing else may be called
	mu             sync.Mutex
	sent           []raft.AppendEntriesRequest
	at             []time.Duration
	start          time.Time
	answer         func(n int) (raft.AppendEntriesResponse, error)
}

func (s *scriptedTransport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte {
	return []byte(a)
}

func (s *scriptedTransport) AppendEntries(_ raft.ServerID, _ raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (err error) {
	s.mu.Lock()
	s.sent = append(s.sent, *req)
	s.at = append(s.at, time.Since(s.start))
	n := len(s.sent)
	s.mu.Unlock()
	*resp, err = s.answer(n)
	return err
}

func TestNudgerResends(t *testing.T) {
	ms := func(n ...time.Duration) (out []time.Duration) {
		for _, v := range n {
			out = append(out, v*time.Millisecond)
		}
		return out
	}
	refuse := raft.AppendEntriesResponse{Term: 4}
	followers := []raft.Server{{ID: "me", Address: "a0"}, {ID: "peer", Address: "a1"}}
	for name, c := range map[string]struct {
		answer func(n int) (raft.AppendEntriesResponse, error)
		want   []time.Duration // after Applied
	}{
		"stored":        {func(int) (raft.AppendEntriesResponse, error) { return raft.AppendEntriesResponse{Success: true}, nil }, ms(0)},
		"a newer term":  {func(int) (raft.AppendEntriesResponse, error) { return raft.AppendEntriesResponse{Term: 5}, nil }, ms(0)},
		"an error":      {func(int) (raft.AppendEntriesResponse, error) { return refuse, errors.New("no route") }, ms(0)},
		"never stored":  {func(int) (raft.AppendEntriesResponse, error) { return refuse, nil }, ms(0, 1, 3, 7, 15, 23, 31)},
		"stored at 3ms": {func(n int) (raft.AppendEntriesResponse, error) { r := refuse; r.Success = n == 3; return r, nil }, ms(0, 1, 3)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scriptedTransport{answer: c.answer, start: time.Now()}
				n := newNudger(s, "me", "a0", discard, time.Millisecond)
				n.Applied(9, 4, followers)
				time.Sleep(time.Minute)
				n.Close()
				require.Equal(t, c.want, s.at)
				for _, req := range s.sent {
					require.Equal(t, raft.AppendEntriesRequest{
						RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("me"), Addr: []byte("a0")},
						Leader:    []byte("a0"), Term: 4, PrevLogTerm: 4, PrevLogEntry: 9, LeaderCommitIndex: 9}, req)
				}
			})
		})
	}
}

// While one message is on its way, only the newest of the others is kept.
func TestNudgerCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scriptedTransport{start: time.Now(), answer: func(int) (raft.AppendEntriesResponse, error) {
			time.Sleep(time.Second)
			return raft.AppendEntriesResponse{Success: true}, nil
		}}
		n := newNudger(s, "me", "a0", discard, time.Millisecond)
		followers := []raft.Server{{ID: "peer", Address: "a1"}}
		n.Applied(1, 4, followers)
		synctest.Wait()
		for i := uint64(2); i <= 100; i++ {
			n.Applied(i, 4, followers)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Len(t, s.sent, 2)
		require.EqualValues(t, 100, s.sent[1].PrevLogEntry)

		n.Applied(101, 4, nil) // the follower left
		synctest.Wait()
		require.Empty(t, n.peers)
		n.Close()
		n.Applied(102, 4, followers)
		require.Len(t, s.sent, 2)
	})
}

// A refused index gives way to a newer one at once.
func TestNudgerPrefersTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scriptedTransport{start: time.Now(), answer: func(n int) (raft.AppendEntriesResponse, error) {
			return raft.AppendEntriesResponse{Success: n == 2}, nil
		}}
		n := newNudger(s, "me", "a0", discard, time.Hour)
		followers := []raft.Server{{ID: "peer", Address: "a1"}}
		n.Applied(1, 4, followers)
		synctest.Wait()
		n.Applied(2, 4, followers)
		synctest.Wait()
		n.Close()
		require.Len(t, s.sent, 2)
		require.EqualValues(t, 2, s.sent[1].PrevLogEntry)
	})
}
