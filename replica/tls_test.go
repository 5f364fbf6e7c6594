package replica

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testSecret(t *testing.T, secret string) *PeerSecurity {
	t.Helper()
	s, err := secretSecurity([]byte(secret), time.Now())
	require.NoError(t, err)
	return s
}

func TestSecretFile(t *testing.T) {
	good := strings.Repeat("s", 16)
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    []string // in the error; nil: accepted
	}{
		"good":           {good, 0o600, nil},
		"read-only":      {" \t" + good + "\r\n", 0o400, nil},
		"short":          {good[:15] + "\n\n\n", 0o600, []string{"holds 15 bytes", "at least 16", "openssl rand"}},
		"empty":          {"", 0o600, []string{"holds 0 bytes"}},
		"group-readable": {good, 0o640, []string{"mode 0640", "chmod 600 "}},
		"world-readable": {good, 0o604, []string{"mode 0604", "chmod 600 "}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "secret")
			require.NoError(t, os.WriteFile(file, []byte(c.content), 0o600))
			require.NoError(t, os.Chmod(file, c.mode))
			s, err := SecretSecurity(file)
			if c.want == nil {
				require.NoError(t, err)
				require.NotNil(t, s)
				return
			}
			for _, w := range append(c.want, file) {
				require.ErrorContains(t, err, w)
			}
		})
	}
	_, err := SecretSecurity(filepath.Join(t.TempDir(), "none"))
	require.ErrorContains(t, err, "ESPERD_SECRET_FILE")
}

// The CA is a function of the secret: a node that restarts, or joins years
// later with another version, must get the same one.
func TestDerivedCAIsPinned(t *testing.T) {
	ca, _, err := deriveCA([]byte("0123456789abcdef"))
	require.NoError(t, err)
	require.Equal(t, "7735a1b91649bdc1df20425c6babd4f161a1b7fb23b1a5aadf96f50d90b49401", hex.EncodeToString(ca.PublicKey.(ed25519.PublicKey)))
	again, _, err := deriveCA([]byte("0123456789abcdef"))
	require.NoError(t, err)
	require.Equal(t, ca.Raw, again.Raw)

	roots := x509.NewCertPool()
	roots.AddCert(ca)
	shown := func(secret string) tls.ConnectionState {
		return tls.ConnectionState{PeerCertificates: []*x509.Certificate{testSecret(t, secret).config.Certificates[0].Leaf}}
	}
	require.NoError(t, verifyPeer(roots, peerName)(shown("0123456789abcdef")))
	require.ErrorContains(t, verifyPeer(roots, "other")(shown("0123456789abcdef")), "other")
	require.ErrorContains(t, verifyPeer(roots, peerName)(shown("0123456789abcdeF")), "unknown authority")
	require.Error(t, verifyPeer(roots, peerName)(tls.ConnectionState{}))
}

func TestCheckExposure(t *testing.T) {
	for _, c := range []struct {
		addr              string
		secured, insecure bool
		ok                bool
	}{
		{"127.0.0.1:7070", false, false, true},
		{"127.8.8.8:0", false, false, true},
		{"[::1]:7070", false, false, true},
		{"localhost:7070", false, false, true},
		{"0.0.0.0:7070", false, false, false},
		{":7070", false, false, false},
		{"[::]:7070", false, false, false},
		{"10.0.0.1:7070", false, false, false},
		{"localhost.example.org:7070", false, false, false},
		{"10.0.0.1:7070", true, false, true},
		{"10.0.0.1:7070", false, true, true},
		{"no-port", true, true, false},
	} {
		err := CheckExposure(c.addr, c.secured, c.insecure)
		require.Equal(t, c.ok, err == nil, "%+v: %v", c, err)
		if err != nil && c.addr != "no-port" {
			for _, want := range []string{c.addr, "ESPERD_SECRET_FILE", "--secret-file", "--insecure"} {
				require.ErrorContains(t, err, want)
			}
		}
	}
}

// writePEM makes what `openssl` would: a CA, and a certificate of it.
func writePEM(t *testing.T, dir string, notAfter time.Time) (cert, key, ca string) {
	t.Helper()
	public, caKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	root, err := signCert(caTemplate(), nil, public, caKey)
	require.NoError(t, err)
	public, leafKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	template := leafTemplate(time.Now())
	template.DNSNames = []string{"node7.example.org"}
	template.NotAfter = notAfter
	leaf, err := signCert(template, root, public, caKey)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: leaf.Raw},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: der},
		"ca.pem":   {Type: "CERTIFICATE", Bytes: root.Raw},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
}

func TestFileSecurity(t *testing.T) {
	later := time.Now().AddDate(1, 0, 0)
	cert, key, ca := writePEM(t, t.TempDir(), later)
	_, err := FileSecurity(cert, key, ca)
	require.NoError(t, err)

	otherCert, otherKey, otherCA := writePEM(t, t.TempDir(), later)
	_, err = FileSecurity(cert, otherKey, ca)
	require.ErrorContains(t, err, "cannot use the peer certificate "+cert)
	_, err = FileSecurity(otherCert, otherKey, ca)
	require.ErrorContains(t, err, "does not fit the CA in "+ca)
	_, err = FileSecurity(cert, key, key)
	require.ErrorContains(t, err, "holds no certificate")
	_, err = FileSecurity(cert, key, otherCA+".none")
	require.ErrorContains(t, err, "cannot read the peer CA")

	expired, key, ca := writePEM(t, t.TempDir(), time.Now().Add(-time.Hour))
	_, err = FileSecurity(expired, key, ca)
	require.ErrorContains(t, err, "expired")
}
