package replica

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	peerName       = "esperd-peer"          // the name in every derived certificate
	caLabel        = "esperd peer CA key 1" // no run id in it: a job's runs share the secret
	secretBytesMin = 16                     // after trimming white space
)

// PeerSecurity is how a node proves to its peers that it belongs to the job.
// Both sides of a connection show a certificate of the same CA, over TLS 1.3.
// A nil *PeerSecurity is plaintext (see CheckExposure).
type PeerSecurity struct {
	config *tls.Config // for both roles
	shared string      // what peers must have in common, for error texts
	remedy string
}

// SecretSecurity derives the job's CA from the secret in file; each node makes
// its own certificate with it, in memory. The secret has to be random: a server
// shows its certificate to anybody, and that is enough to try guesses on.
func SecretSecurity(file string) (*PeerSecurity, error) {
	const how = "(`umask 077; openssl rand -hex 32 > FILE` makes one)"
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the secret file %s: %w: --secret-file (ESPERD_SECRET_FILE) wants a file of random bytes %s", file, err, how)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("the secret file %s has mode %04o, expected no access for group and others: chmod 600 %[1]s; where the mode is not yours to change (a Kubernetes secret with fsGroup), copy it: install -m 600 %[1]s FILE, and give FILE", file, mode)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the secret file %s: %w", file, err)
	}
	secret := bytes.TrimSpace(b)
	if len(secret) < secretBytesMin {
		return nil, fmt.Errorf("the secret file %s holds %d bytes, expected at least %d random ones %s", file, len(secret), secretBytesMin, how)
	}
	return secretSecurity(secret, time.Now())
}

// LoneSecurity is for a node without peers: a secret that only this process ever
// has, so that nobody can speak to its listener.
func LoneSecurity() (*PeerSecurity, error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("making a secret: %w", err)
	}
	return secretSecurity(secret, time.Now())
}

// deriveCA gives every node of the job the same CA.
func deriveCA(secret []byte) (*x509.Certificate, ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, secret, nil, caLabel, ed25519.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	ca, err := signCert(caTemplate(), nil, key.Public(), key)
	return ca, key, err
}

func secretSecurity(secret []byte, now time.Time) (*PeerSecurity, error) {
	ca, caKey, err := deriveCA(secret)
	if err != nil {
		return nil, fmt.Errorf("derive the peer CA: %w", err)
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a peer certificate: %w", err)
	}
	leaf, err := signCert(leafTemplate(now), ca, public, caKey)
	if err != nil {
		return nil, fmt.Errorf("make a peer certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	cert := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return &PeerSecurity{
		config: peerTLSConfig(cert, roots, peerName),
		shared: "this job's secret",
		remedy: "give every node of the job the same --secret-file (ESPERD_SECRET_FILE)",
	}, nil
}

// caTemplate is the same on every node: nothing in it depends on a clock.
func caTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "esperd job CA"},
		NotBefore:             time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
}

// leafTemplate lives as long as a process, so expiry protects nothing: it
// leaves room for clocks that differ.
func leafTemplate(now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: peerName},
		DNSNames:     []string{peerName},
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// signCert signs template with key; a nil parent signs itself.
func signCert(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// FileSecurity takes given PEM files. Whoever has a certificate of the CA is a
// peer, whatever name it carries: the CA should be the job's own.
func FileSecurity(certFile, keyFile, caFile string) (*PeerSecurity, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("cannot use the peer certificate %s with the key %s: %w", certFile, keyFile, err)
	}
	b, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read the peer CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("the peer CA file %s holds no certificate, expected at least one in PEM", caFile)
	}
	s := &PeerSecurity{
		config: peerTLSConfig(cert, roots, ""),
		shared: "a certificate that fits the CA in " + caFile,
		remedy: "give every node a certificate of the same CA",
	}
	// This node is a peer too: what the others would refuse is found here.
	if err := verifyPeer(roots, "")(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}); err != nil {
		return nil, fmt.Errorf("the peer certificate %s does not fit the CA in %s: %w", certFile, caFile, err)
	}
	return s, nil
}

// peerTLSConfig checks the other side's certificate in one way for both roles,
// in verifyPeer, instead of the host name rules that are meant for the web.
func peerTLSConfig(cert tls.Certificate, roots *x509.CertPool, name string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // of the web's rules; see VerifyConnection
		VerifyConnection:       verifyPeer(roots, name),
		SessionTicketsDisabled: true,
	}
}

func verifyPeer(roots *x509.CertPool, name string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the peer shows no certificate")
		}
		o := x509.VerifyOptions{Roots: roots, DNSName: name, Intermediates: x509.NewCertPool(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		for _, c := range s.PeerCertificates[1:] {
			o.Intermediates.AddCert(c)
		}
		_, err := s.PeerCertificates[0].Verify(o)
		return err
	}
}

// SecurityError says that a peer cannot be talked to because the two do not
// hold the same secret or certificates. Trying again does not help.
type SecurityError struct {
	Text string
	Err  error
}

func (e *SecurityError) Error() string { return e.Text }

// Unwrap returns what TLS said.
func (e *SecurityError) Unwrap() error { return e.Err }

// explain turns the error of a handshake with peer into words an operator can
// act on; errors of the network stay what they are.
func (s *PeerSecurity) explain(peer string, err error) error {
	var header tls.RecordHeaderError
	var invalid x509.CertificateInvalidError
	var remote *net.OpError
	var text string
	switch {
	case s == nil:
		return fmt.Errorf("connection with peer %s: %w", peer, err)
	case errors.As(err, &header):
		text = fmt.Sprintf("peer %s does not hold %s (it speaks no TLS): %s", peer, s.shared, s.remedy)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		text = fmt.Sprintf("the certificate of peer %s is not valid now (%v): compare the clocks of the two nodes", peer, err)
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("connection with peer %s ended during the handshake: %w", peer, err)
	case errors.As(err, &remote) && remote.Op != "remote error": // "remote error" is a TLS alert
		return fmt.Errorf("connection with peer %s: %w", peer, err)
	default:
		text = fmt.Sprintf("peer %s does not hold %s (%v): %s", peer, s.shared, err, s.remedy)
	}
	return &SecurityError{Text: text, Err: err}
}

// CheckExposure refuses to listen without security where others can connect.
func CheckExposure(listenAddr string, secured, insecure bool) error {
	host, _, err := net.SplitHostPort(listenAddr)
	if err != nil {
		return fmt.Errorf("listen address %q: expected HOST:PORT (%w)", listenAddr, err)
	}
	if secured || insecure || isLoopback(host) {
		return nil
	}
	return fmt.Errorf("refusing to listen on %s without a secret: whoever can connect could write into the log; "+
		"give every node the same --secret-file (ESPERD_SECRET_FILE), listen on 127.0.0.1, or accept the risk with --insecure", listenAddr)
}

// isLoopback is about names that mean loopback everywhere: another name may
// resolve to anything tomorrow, and an empty host is every address.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
