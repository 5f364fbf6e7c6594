package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
)

// esperd prepares a process of this program, in a home of its own.
func esperd(t *testing.T, home string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, args...)
	cmd.Env = []string{asEsperd + "=1", "HOME=" + home, "PATH=" + os.Getenv("PATH")}
	return cmd
}

// finish runs a process to its end and returns its status and what it wrote.
func finish(t *testing.T, cmd *exec.Cmd) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); !exited {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// up starts `esperd run` and returns when it serves.
func up(t *testing.T, home string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := esperd(t, home, append([]string{"run"}, args...)...)
	log := new(bytes.Buffer)
	cmd.Stderr = log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log)
		}
	})
	require.Eventually(t, func() bool {
		ask := esperd(t, home, append([]string{"status", "--json"}, targetOf(args)...)...)
		out, err := ask.Output()
		var s api.State
		return err == nil && json.Unmarshal(out, &s) == nil && s.Quorum && s.Index > 0
	}, 20*time.Second, 20*time.Millisecond)
	return cmd
}

func targetOf(args []string) []string {
	for i, a := range args {
		if a == "--data-dir" {
			return args[i : i+2]
		}
	}
	return nil
}

func TestUsage(t *testing.T) {
	home := t.TempDir()
	status, out, _ := finish(t, esperd(t, home))
	require.Equal(t, exitOK, status)
	require.Contains(t, out, "Usage: esperd <command>")
	for _, args := range [][]string{{"dance"}, {"run", "--dance"}, {"exec"}, {"exec", "--"}, {"run", "--rank", "1"},
		{"status", "--socket", "a", "--url", "b"}, {"events", "--from", "x"}} {
		status, _, errs := finish(t, esperd(t, home, args...))
		require.Equal(t, exitUsage, status, args)
		require.Contains(t, errs, "esperd: error: ", args)
	}
	status, out, _ = finish(t, esperd(t, home, "version", "--json"))
	require.Equal(t, exitOK, status)
	var v versions
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	require.Equal(t, api.ProtocolVersion, v.Protocol)
}

func TestRunServesAndDrains(t *testing.T) {
	home := t.TempDir()
	cmd := up(t, home)
	dir := filepath.Join(home, ".local/state/esperd/default/rank0")
	require.FileExists(t, filepath.Join(dir, adminAddrName))
	for _, args := range [][]string{{"status"}, {"ranks"}, {"events"}, {"events", "--json", "--limit", "1"},
		{"status", "--data-dir", dir}, {"status", "--socket", filepath.Join(dir, socketName)}} {
		status, out, errs := finish(t, esperd(t, home, args...))
		require.Equal(t, exitOK, status, "%v: %s", args, errs)
		require.NotEmpty(t, out)
	}
	status, _, errs := finish(t, esperd(t, home, "slots"))
	require.Equal(t, exitFailure, status)
	require.Contains(t, errs, "no model", "nobody has configured one")

	follow := esperd(t, home, "events", "--follow", "--from", "1")
	var followErrs bytes.Buffer
	follow.Stderr = &followErrs
	lines, err := follow.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, follow.Start())
	b := make([]byte, 1)
	_, err = lines.Read(b)
	require.NoError(t, err)

	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	require.NoError(t, follow.Wait(), "the log that it followed is over: %s", &followErrs)
	require.NoFileExists(t, filepath.Join(dir, adminAddrName))
	require.NoFileExists(t, filepath.Join(dir, socketName))

	status, _, errs = finish(t, esperd(t, home, "status"))
	require.Equal(t, exitFailure, status)
	require.Contains(t, errs, filepath.Join(dir, socketName))
	require.Contains(t, errs, "--socket")

	up(t, home) // on what the first one left
}

func TestRunRefuses(t *testing.T) {
	home := t.TempDir()
	up(t, home)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	garbled := filepath.Join(home, "garbled")
	require.NoError(t, os.Mkdir(garbled, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(garbled, "node.json"), []byte("{"), 0o600))
	open := filepath.Join(home, "secret")
	require.NoError(t, os.WriteFile(open, []byte(strings.Repeat("x", 40)), 0o644))
	other := filepath.Join(home, "other")
	for name, c := range map[string]struct {
		args []string
		word string
	}{
		"locked directory":  {nil, "in use by process"},
		"garbled directory": {[]string{"--data-dir", garbled}, "node.json"},
		"port in use":       {[]string{"--data-dir", other, "--listen", taken.Addr().String()}, "in use"},
		"admin port in use": {[]string{"--data-dir", other, "--admin-listen", taken.Addr().String()}, "--admin-listen"},
		"socket in use":     {[]string{"--data-dir", other, "--socket", filepath.Join(home, ".local/state/esperd/default/rank0", socketName)}, "--socket"},
		"no secret":         {[]string{"--data-dir", other, "--rank", "0", "--world-size", "2", "--join", "10.0.0.1"}, "--secret-file"},
		"secret missing":    {[]string{"--data-dir", other, "--secret-file", filepath.Join(home, "nonesuch")}, "nonesuch"},
		"secret readable":   {[]string{"--data-dir", other, "--secret-file", open}, "chmod 600"},
		"no certificate":    {[]string{"--data-dir", other, "--peer-cert", "a", "--peer-key", "b", "--peer-ca", "c"}, "certificate a"},
	} {
		t.Run(name, func(t *testing.T) {
			status, _, errs := finish(t, esperd(t, home, append([]string{"run"}, c.args...)...))
			require.Equal(t, exitFailure, status, errs)
			require.Contains(t, errs, c.word)
		})
	}
	// A world of one has a port of its own.
	up(t, home, "--data-dir", filepath.Join(home, "second"))
}

// Nobody can speak to the peers' door of a world of one.
func TestAloneLetsNobodyIn(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, "data")
	up(t, home, "--data-dir", dir)
	status, out, errs := finish(t, esperd(t, home, "ranks", "--json", "--data-dir", dir))
	require.Equal(t, exitOK, status, errs)
	var ranks api.Ranks
	require.NoError(t, json.Unmarshal([]byte(out), &ranks))
	require.Len(t, ranks.Ranks, 1)
	address := ranks.Ranks[0].Address
	require.NotContains(t, address, ":7400")

	plain, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer plain.Close()
	require.NoError(t, plain.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = plain.Write([]byte("Pesp1")) // the greeting of a peer without a secret
	require.NoError(t, err)
	answer := make([]byte, 5)
	_, err = io.ReadFull(plain, answer)
	require.True(t, err != nil || string(answer) != "Pesp1", "it answered as to a peer")

	pair, err := tls.X509KeyPair(selfSigned(t))
	require.NoError(t, err)
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	require.NoError(t, err, "the refusal comes after a TLS 1.3 client's handshake")
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = conn.Read(answer)
	require.ErrorContains(t, err, "remote error: tls")
}

// selfSigned is a stranger's certificate, with its key.
func selfSigned(t *testing.T) (cert, key []byte) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"esperd-peer"}}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// A trainer that does not name its rendezvous is in the one that esperd sees.
func TestRoundOfTrainersThatNameNone(t *testing.T) {
	home := t.TempDir()
	up(t, home, "--round", "again")
	for _, c := range []struct{ named, round string }{{"", "again"}, {"own", "own"}} {
		trainer, err := client.Connect(t.Context(), filepath.Join(home, ".local/state/esperd/default/rank0", socketName),
			client.Options{Fingerprint: c.named, Slots: []api.SlotRequest{{Name: "r0c0"}}})
		require.NoError(t, err)
		status, out, errs := finish(t, esperd(t, home, "status"))
		require.Equal(t, exitOK, status, errs)
		require.Contains(t, out, `fingerprint "`+c.round+`"`)
		require.NoError(t, trainer.Close())
	}
}

// A path that is too long for a socket gets a short one, which status finds.
func TestLongDataDir(t *testing.T) {
	home := t.TempDir()
	dir := filepath.Join(home, strings.Repeat("d", 120))
	cmd := up(t, home, "--data-dir", dir)
	require.NoFileExists(t, filepath.Join(dir, socketName))
	short := filepath.Dir((&resolver{surroundings: surroundings{isDir: isDir}}).mustSocket(t, dir))
	require.DirExists(t, short)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	require.NoDirExists(t, short)
}

func (r *resolver) mustSocket(t *testing.T, dir string) string {
	path, _, err := r.socketOf(dir)
	require.NoError(t, err)
	return path
}

func TestExec(t *testing.T) {
	home := t.TempDir()
	for name, c := range map[string]struct {
		args   []string
		status int
		out    string
	}{
		"status 0":  {[]string{"exec", "--", "sh", "-c", "echo $ESPERD_SOCKET $ESPERD_DATA_DIR $ESPERD_RUN_ID"}, 0, "/esperd.sock " + home + "/.local/state/esperd/default/rank0 run-"},
		"status 7":  {[]string{"exec", "--", "sh", "-c", "exit 7"}, 7, ""},
		"a signal":  {[]string{"exec", "--", "sh", "-c", "kill -9 $$"}, 137, ""},
		"own flags": {[]string{"exec", "--run-id", "r", "--", "echo", "--run-id", "x", "--"}, 0, "--run-id x --\n"},
		"no dashes": {[]string{"exec", "--run-id", "r", "echo", "--rank", "x"}, 0, "--rank x\n"},
		"round":     {[]string{"exec", "--round", "again", "--", "sh", "-c", "echo -$ESPERD_ROUND-"}, 0, "-again-\n"},
		"identity":  {[]string{"exec", "--rank", "0", "--world-size", "1", "--", "sh", "-c", "echo -$ESPERD_RANK/$ESPERD_WORLD_SIZE-"}, 0, "-0/1-\n"},
		"no flags":  {[]string{"exec", "--", "sh", "-c", "echo -$ESPERD_RANK/$ESPERD_WORLD_SIZE-"}, 0, "-/-\n"},
		"no round":  {[]string{"exec", "--", "sh", "-c", "echo -$ESPERD_ROUND-"}, 0, "--\n"},
		"nonesuch":  {[]string{"exec", "--", "nonesuch"}, exitNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, out, errs := finish(t, esperd(t, home, c.args...))
			require.Equal(t, c.status, status, errs)
			require.Contains(t, out, c.out)
		})
	}
	cmd := esperd(t, home, "exec", "--", "sh", "-c", `trap "exit 5" USR1; echo ready; while :; do sleep 0.02; done`)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 16))
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(syscall.SIGUSR1))
	exit, ok := errors.AsType[*exec.ExitError](cmd.Wait())
	require.True(t, ok)
	require.Equal(t, 5, exit.ExitCode())
}

// The command of a failed esperd has to end, even if it does not want to.
func TestSupervisorEndsTheCommand(t *testing.T) {
	failed := make(chan struct{})
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	s := &supervisor{argv: []string{"sh", "-c", `trap "" TERM; echo ready; while :; do sleep 0.02; done`},
		a: &app{ctx: context.Background(), stdout: write, stderr: os.Stderr}, failed: failed,
		why: func() error { return errors.New("the disk is gone") }, killAfter: 50 * time.Millisecond}
	go func() {
		_, _ = read.Read(make([]byte, 16))
		close(failed)
	}()
	err = s.run()
	write.Close()
	require.EqualError(t, err, "the disk is gone; the command was told to end")
}
