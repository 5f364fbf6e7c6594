package device

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Limits of an offer.
const (
	maxOfferBytes = 64 << 20
	maxRights     = 250 // file descriptors that Linux takes in one message (SCM_MAX_FD is 253)
)

// Send hands an offer over: its length (4 bytes, little-endian) and JSON, then a
// byte for every batch of up to 250 file descriptors that come with it, in the
// order of the chunks. A file descriptor that several chunks share comes with
// each of them.
func Send(c *net.UnixConn, o *Offer) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if len(text) > maxOfferBytes {
		return fmt.Errorf("arena of %d chunks: its description has %d bytes, more than %d", len(o.Chunks), len(text), maxOfferBytes)
	}
	if _, err := c.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)); err != nil {
		return fmt.Errorf("hand over the arena: %w", err)
	}
	var fds []int
	for _, ch := range o.Chunks {
		if ch.IPC == nil {
			fds = append(fds, ch.FD)
		}
	}
	for len(fds) > 0 {
		n := min(len(fds), maxRights)
		if _, _, err := c.WriteMsgUnix([]byte{'f'}, unix.UnixRights(fds[:n]...), nil); err != nil {
			return fmt.Errorf("hand over the arena's file descriptors: %w", err)
		}
		fds = fds[n:]
	}
	return nil
}

// Receive takes an offer. The file descriptors are the caller's, to close.
func Receive(c *net.UnixConn) (*Offer, error) {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, fmt.Errorf("take the arena: %w", err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxOfferBytes {
		return nil, fmt.Errorf("take the arena: a description of %d bytes, more than %d", n, maxOfferBytes)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(c, text); err != nil {
		return nil, fmt.Errorf("take the arena: %w", err)
	}
	o := new(Offer)
	if err := json.Unmarshal(text, o); err != nil {
		return nil, fmt.Errorf("take the arena: %w", err)
	}
	want := 0
	for i := range o.Chunks {
		o.Chunks[i].FD = -1
		if o.Chunks[i].IPC == nil {
			want++
		}
	}
	fds, err := receiveRights(c, want)
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("take the arena's file descriptors: %w", err)
	}
	for i := range o.Chunks {
		if o.Chunks[i].IPC == nil {
			o.Chunks[i].FD, fds = fds[0], fds[1:]
		}
	}
	return o, nil
}

func receiveRights(c *net.UnixConn, want int) (fds []int, err error) {
	for len(fds) < want {
		var b [1]byte
		oob := make([]byte, unix.CmsgSpace(4*maxRights))
		n, oobn, _, _, err := c.ReadMsgUnix(b[:], oob)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fds, err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return fds, err
		}
		before := len(fds)
		for _, m := range messages {
			got, err := unix.ParseUnixRights(&m)
			if err != nil {
				return fds, err
			}
			for _, fd := range got {
				unix.CloseOnExec(fd)
			}
			fds = append(fds, got...)
		}
		if len(fds) == before {
			return fds, errors.New("expected some with the message, got none")
		}
	}
	if len(fds) > want {
		return fds, fmt.Errorf("expected %d, got %d", want, len(fds))
	}
	return fds, nil
}

// ReceiveFile takes one regular file, such as a memfd: a byte with its
// descriptor. It is the caller's, to close.
func ReceiveFile(c *net.UnixConn) (*os.File, error) {
	fds, err := receiveRights(c, 1)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fds[0], &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			err = errors.New("expected a file with contents, such as a memfd")
		}
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("take a file: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "tensors"), nil
}
