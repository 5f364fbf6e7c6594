package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// conn is one keep-alive connection to a socket, for one request at a time. It
// does what http.Transport does for many at once, without its goroutines: a
// numbered call is one write and one read.
type conn struct {
	socket string
	c      net.Conn // nil: not connected
	r      *bufio.Reader
	buf    []byte
}

// post sends a JSON body and returns status and body of the answer. An error
// means that there was no whole answer; the connection is closed then.
func (c *conn) post(ctx context.Context, path string, body []byte) (int, []byte, error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	if c.c == nil {
		var d net.Dialer
		dialled, err := d.DialContext(ctx, "unix", c.socket)
		if err != nil {
			return 0, nil, err
		}
		c.c, c.r = dialled, bufio.NewReader(dialled)
	}
	used := c.c
	stop := context.AfterFunc(ctx, func() { _ = used.SetDeadline(time.Unix(1, 0)) }) // wakes the read below
	status, answer, reusable, err := c.exchange(path, body)
	if !stop() || err != nil || !reusable {
		c.close()
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return status, answer, err
}

func (c *conn) exchange(path string, body []byte) (status int, answer []byte, reusable bool, err error) {
	b := append(c.buf[:0], "POST "...)
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: esperd\r\nContent-Type: application/json\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	b = append(b, body...)
	c.buf = b
	_, wrote := c.c.Write(b)
	// Who refuses a request may do so without reading all of it.
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, nil, false, errors.Join(wrote, err)
	}
	answer, err = io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	return resp.StatusCode, answer, wrote == nil && !resp.Close, err
}

func (c *conn) close() {
	if c.c != nil {
		_ = c.c.Close() // it is given up, whatever the reason
		c.c = nil
	}
}
