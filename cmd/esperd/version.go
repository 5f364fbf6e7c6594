package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// version is what a release is built with: -ldflags "-X main.version=v1.2.3".
// Empty: what Go says of the module.
var version string

type versionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// versions are what has to fit between builds that work together.
type versions struct {
	Esperd   string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Entry    uint64 `json:"entry_version"`
	Protocol int    `json:"protocol_version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`

	modified bool // built from files that are not those of Commit
}

func (c *versionCmd) Run(a *app) error {
	v := thisVersion()
	if c.JSON {
		return writeJSON(a.stdout, v)
	}
	_, err := fmt.Fprintf(a.stdout, "esperd %s (%s, %s; writes log entries of version %d, speaks version %d with trainers)\n",
		v.Esperd, v.Platform, v.Go, v.Entry, v.Protocol)
	return err
}

func thisVersion() versions {
	v := versions{Esperd: "(devel)", Entry: events.Version, Protocol: api.ProtocolVersion, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Esperd = cmp.Or(version, info.Main.Version, v.Esperd)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.modified = s.Value == "true"
		}
	}
	return v
}

// build tells this build from every other: one that is no release, and of no
// commit, by the bytes of the program.
func (v versions) build() string {
	b := fmt.Sprintf("esperd %s %s %s", v.Esperd, v.Go, v.Platform)
	if v.Commit != "" {
		b += " " + v.Commit
	}
	if version != "" || v.Commit != "" && !v.modified {
		return b
	}
	return b + " " + programHash()
}

// programHash is empty where the program cannot be read: then two builds of one
// name are taken for one.
func programHash() string {
	name, err := os.Executable()
	if err != nil {
		return ""
	}
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
