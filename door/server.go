package door

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/device"
)

const (
	// DefaultAdmin is the admin door's address unless another is given: a free
	// port on loopback.
	DefaultAdmin = "127.0.0.1:0"
	// DefaultWaitMax is how long a call waits at most: longer than NCCL's own
	// 10 minutes, so that the first to give up is the one that can say why.
	DefaultWaitMax = 15 * time.Minute
	// DefaultWarnAfter is after how long a waiting call is logged.
	DefaultWarnAfter = 5 * time.Second
)

// Options says where the doors are and what is behind them.
type Options struct {
	Replica   Replica
	Socket    string        // path of the trainer's door
	Admin     string        // host:port of the admin door; "": DefaultAdmin
	Version   string        // of esperd, for people
	Logger    *slog.Logger  // nil: slog.Default()
	WaitMax   time.Duration // 0: DefaultWaitMax
	WarnAfter time.Duration // 0: DefaultWarnAfter

	// Fingerprint is the rendezvous of trainers that name none.
	Fingerprint string

	// Archive is told of checkpoints; nil: there is none.
	Archive Archive

	// OpenDevice opens what arenas lie on, given the UUID of the trainer's GPU
	// (may be empty). It is called once a trainer asks for an arena. Nil, or a nil
	// device: there is none.
	OpenDevice func(uuid string) (device.Device, error)

	// Token lets who has it make requests at the admin door; "": nobody.
	Token string
}

// Archive is a copy of the log elsewhere, which grows beside the calls. No method
// waits for it.
type Archive interface {
	Checkpointed()
	State() api.Archive
}

// Server is both doors of one node.
type Server struct {
	replica   Replica
	log       *slog.Logger
	version   string
	waitMax   time.Duration
	warnAfter time.Duration

	fingerprint string
	token       string
	archive     Archive

	devices    devices
	gatherings gatherings
	holdings   holdings
	heldOutbox heldOutbox
	minorities minorities

	node        events.NodeID
	rank, world uint64

	sessions sessions
	ledger   ledger
	faults   faults
	looks    looks
	recent   recent
	verdicts verdicts
	metrics  *metrics
	words    *words

	rechecking atomic.Bool // replicas are comparing their states with their histories

	noted string    // path of the file that says whose process is watched
	blind sync.Once // it was logged that a trainer's process cannot be watched

	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup

	socket  string
	admin   net.Addr
	servers []*http.Server
	closed  sync.Once
}

// newServer makes a server without doors: what both of them serve.
func newServer(o Options) *Server {
	id := o.Replica.Status().Identity
	s := &Server{replica: o.Replica, version: o.Version, waitMax: o.WaitMax, warnAfter: o.WarnAfter, fingerprint: o.Fingerprint, token: o.Token, archive: o.Archive,
		node: id.Node, rank: id.Rank, world: id.World,
		ledger: ledger{waits: map[*wait]struct{}{}, last: map[string]*lastCalls{}}, looks: looks{turn: make(chan struct{}, 1)}}
	s.sessions.rank, s.sessions.listed = s.rank, func() string { return incarnationOf(s.replica.State(), s.rank) }
	if s.log = o.Logger; s.log == nil {
		s.log = slog.Default()
	}
	s.log = s.log.With("rank", s.rank)
	s.waitMax, s.warnAfter = cmp.Or(s.waitMax, DefaultWaitMax), cmp.Or(s.warnAfter, DefaultWarnAfter)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.devices.open = o.OpenDevice
	s.metrics = newMetrics(s)
	s.words = newWords(s.log)
	s.replica.Handle(askLedger, s.answerLedger)
	s.replica.Handle(askRecheck, s.answerRecheck)
	s.replica.Handle(askAttested, s.answerAttested)
	s.replica.Handle(askHeld, s.answerHeld)
	s.replica.Handle(askTensors, s.answerTensors)
	s.replica.Handle(askOffer, s.answerOffer)
	s.replica.Handle(askVerdict, s.answerVerdict)
	return s
}

// Open opens both doors and serves them until Close. Errors say which door, at
// which path or address, and how to choose another.
func Open(o Options) (*Server, error) {
	s := newServer(o)
	trainer, err := listenSocket(o.Socket)
	if err != nil {
		return nil, err
	}
	admin, err := net.Listen("tcp", cmp.Or(o.Admin, DefaultAdmin))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the admin door: %w: give another address with --admin-listen (ESPERD_ADMIN_LISTEN)", err), trainer.Close())
	}
	s.socket, s.admin = o.Socket, admin.Addr()
	s.words.open(o.Socket + WordSuffix)
	s.words.begin(s.replica.State())
	s.work.Go(s.moveWords)
	s.work.Go(s.watchDivergence)
	s.noted = o.Socket + TrainerSuffix
	s.work.Go(s.watchAgain)
	mux := s.newMux()
	base := func(net.Listener) context.Context { return s.ctx }
	errorLog := slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	s.serve(trainer, &http.Server{Handler: s.trainerHandler(mux), ConnContext: s.greet, BaseContext: base,
		ReadHeaderTimeout: headerReadMax, MaxHeaderBytes: headerBytesMax, ErrorLog: errorLog})
	s.serve(admin, &http.Server{Handler: s.adminHandler(mux, s.admin), BaseContext: base,
		ReadHeaderTimeout: headerReadMax, MaxHeaderBytes: headerBytesMax, IdleTimeout: adminIdleMax, WriteTimeout: adminWriteMax, ErrorLog: errorLog})
	s.log.Info("the doors are open", "socket", s.socket, "admin", "http://"+s.admin.String())
	return s, nil
}

func (s *Server) serve(l net.Listener, server *http.Server) {
	s.servers = append(s.servers, server)
	s.work.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("a door does not take connections any more", "address", l.Addr().String(), "error", err)
		}
	})
}

// Socket returns the path of the trainer's door.
func (s *Server) Socket() string { return s.socket }

// AdminAddr returns the address of the admin door, as host:port.
func (s *Server) AdminAddr() string { return s.admin.String() }

// Close closes both doors. Calls that wait are answered with unavailable, so
// that their client repeats them when esperd is back. ctx bounds how long the
// answers may take, and before them the end of a round that is not in the log yet.
func (s *Server) Close(ctx context.Context) error {
	var err error
	s.closed.Do(func() {
		s.farewell(ctx)
		s.settle(ctx)
		s.cancel(errClosing)
		for _, server := range s.servers {
			if e := server.Shutdown(ctx); e != nil {
				err = errors.Join(err, e, server.Close())
			}
		}
		s.work.Wait()
		if ses := s.sessions.served(); ses != nil {
			ses.release()
		}
		err = errors.Join(err, s.devices.close())
		err = errors.Join(err, s.words.close())
	})
	return err
}
