package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

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
	if info.Main.Version != "" {
		v.Esperd = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}
