package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

const (
	tokenBytesMin = 16
	tokenBytesMax = 4096
)

// readToken reads the token of --token-file, as run opens its admin door for it
// and request shows it there. Without a file there is none.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	const how = "(`umask 077; openssl rand -hex 32 > FILE` makes one)"
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("cannot read the token file %s: %w: --token-file (ESPERD_TOKEN_FILE) wants a file of random characters %s", file, err, how)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot look at the token file %s: %w", file, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("the token file %s has mode %04o, expected no access for group and others: chmod 600 %[1]s; where the mode is not yours to change (a Kubernetes secret with fsGroup), copy it: install -m 600 %[1]s FILE, and give FILE", file, mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, tokenBytesMax+1))
	if err != nil {
		return "", fmt.Errorf("cannot read the token file %s: %w", file, err)
	}
	token := bytes.TrimSpace(b)
	switch {
	case len(b) > tokenBytesMax:
		return "", fmt.Errorf("the token file %s holds more than %d bytes, expected at most that many %s", file, tokenBytesMax, how)
	case len(token) < tokenBytesMin:
		return "", fmt.Errorf("the token file %s holds %d bytes, expected at least %d random ones %s", file, len(token), tokenBytesMin, how)
	}
	for _, c := range token {
		if c <= ' ' || c >= 0x7f { // it is sent in an HTTP header
			return "", fmt.Errorf("the token file %s holds white space or other characters than printable ASCII, expected one line without them %s", file, how)
		}
	}
	return string(token), nil
}
