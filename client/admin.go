package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/esperd/esperd/api"
)

const lineBytesMax = 64 << 20 // of one followed entry: as long as the longest, as JSON

const requestsPath = "/v1/requests"

// Admin reads what one node knows, and asks it for something.
type Admin struct {
	base string
	http *http.Client
}

// NewAdmin returns a reader of the node behind target: the path of its socket,
// or the admin door's http://host:port.
func NewAdmin(target string) *Admin {
	if strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://") {
		return &Admin{base: strings.TrimSuffix(target, "/"), http: &http.Client{}}
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", target)
	}
	return &Admin{base: "http://esperd", http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close ends idle connections.
func (a *Admin) Close() { a.http.CloseIdleConnections() }

// Get reads the answer at a path such as /v1/state into out. An error is a
// *Problem, or the connection's.
func (a *Admin) Get(ctx context.Context, path string, out any) error {
	resp, err := a.get(ctx, path)
	if err != nil {
		return err
	}
	return readBody(resp, out)
}

func (a *Admin) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return nil, err
	}
	return a.do(req)
}

func (a *Admin) do(req *http.Request) (*http.Response, error) {
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("esperd does not answer: %w; is it running, and is this its socket or address?", err)
	}
	return resp, nil
}

// readBody reads an answer to its end.
func readBody(resp *http.Response, out any) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return decode(resp.StatusCode, body, out)
}

// State reads /v1/state.
func (a *Admin) State(ctx context.Context) (*api.State, error) {
	return read[api.State](ctx, a, "/v1/state")
}

// Slots reads /v1/slots of a model; "" is api.DefaultModel.
func (a *Admin) Slots(ctx context.Context, model string) (*api.Model, error) {
	return read[api.Model](ctx, a, "/v1/slots?model="+url.QueryEscape(model))
}

// Slot reads /v1/slots/{slot} of a model; "" is api.DefaultModel.
func (a *Admin) Slot(ctx context.Context, model, slot string) (*api.Slot, error) {
	return read[api.Slot](ctx, a, "/v1/slots/"+url.PathEscape(slot)+"?model="+url.QueryEscape(model))
}

// Ranks reads /v1/ranks.
func (a *Admin) Ranks(ctx context.Context) (*api.Ranks, error) {
	return read[api.Ranks](ctx, a, "/v1/ranks")
}

// Arrivals reads /v1/arrivals.
func (a *Admin) Arrivals(ctx context.Context) (*api.Arrivals, error) {
	return read[api.Arrivals](ctx, a, "/v1/arrivals")
}

// Divergences reads /v1/divergences.
func (a *Admin) Divergences(ctx context.Context) (*api.Divergences, error) {
	return read[api.Divergences](ctx, a, "/v1/divergences")
}

// Ready reads /readyz: a *Problem says why the node is not.
func (a *Admin) Ready(ctx context.Context) error {
	_, err := read[api.Health](ctx, a, "/readyz")
	return err
}

// Request asks, as an operator, for something at a model's next fence. Over the
// admin door it needs esperd's token; over the socket that is "".
func (a *Admin) Request(ctx context.Context, token string, r api.RequestRequest) (*api.Requested, error) {
	body, err := encode(r, api.BodyBytesMax)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+requestsPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := a.do(req)
	if err != nil {
		return nil, err
	}
	out := new(api.Requested)
	if err := readBody(resp, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Events reads a page of the log: at most limit entries (1 to 10,000) from an
// index on; 0 is where the node's history begins.
func (a *Admin) Events(ctx context.Context, from, limit uint64) (*api.Events, error) {
	return read[api.Events](ctx, a, "/v1/events?from="+strconv.FormatUint(from, 10)+"&limit="+strconv.FormatUint(limit, 10))
}

// Follow calls each with every entry from an index on, as they come, until ctx
// ends (its error), the node closes (nil), or each returns an error (that one).
func (a *Admin) Follow(ctx context.Context, from uint64, each func(api.Entry) error) error {
	resp, err := a.get(ctx, "/v1/events?follow=true&from="+strconv.FormatUint(from, 10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return readBody(resp, nil)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, lineBytesMax)
	for lines.Scan() {
		var e api.Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return lines.Err()
}

func read[T any](ctx context.Context, a *Admin, path string) (*T, error) {
	out := new(T)
	if err := a.Get(ctx, path, out); err != nil {
		return nil, err
	}
	return out, nil
}
