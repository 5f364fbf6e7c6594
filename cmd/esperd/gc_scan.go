package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/esperd/esperd/replica"
)

// stateRun is one run under the state directory.
type stateRun struct {
	Run     string    `json:"run"`
	Path    string    `json:"path"`
	Ranks   []string  `json:"ranks"`           // data directories, such as rank0
	Aside   []string  `json:"aside,omitempty"` // those that were set aside as evidence
	Other   []string  `json:"other,omitempty"` // what no esperd made: it is never removed
	Bytes   int64     `json:"bytes"`           // on disk, of the data directories
	LastUse time.Time `json:"last_use"`
	Entries uint64    `json:"entries,omitempty"` // of the longest history that can be read
	Epoch   *int64    `json:"epoch,omitempty"`   // there
	InUse   string    `json:"in_use_by,omitempty"`
	Problem string    `json:"problem,omitempty"` // why it cannot be removed here
	Chosen  bool      `json:"chosen,omitempty"`
	Removed bool      `json:"removed,omitempty"`
	Failure string    `json:"failure,omitempty"` // to remove it
}

// marks are the files by which a data directory is known.
var marks = []string{"node.json", "lock", "history.db", "raft"}

var rankPattern = regexp.MustCompile(`^rank[0-9]{1,4}$`)

// trashPrefix begins the name under which a directory waits to be removed. No
// run is called so.
const trashPrefix = ".gc-"

// stateDir is the state directory of one user. Everything below goes through
// root, which lets nothing lead out of it, whatever links somebody puts there.
type stateDir struct {
	path string
	root *os.Root
}

// runs lists the runs, and what was left of an earlier removal.
func (s *stateDir) runs() (runs []*stateRun, trash []string, err error) {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list the runs in %s: %w", s.path, err)
	}
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), trashPrefix):
			trash = append(trash, e.Name())
		case runIDPattern.MatchString(e.Name()) && e.Type()&fs.ModeSymlink != 0:
			runs = append(runs, &stateRun{Run: e.Name(), Path: filepath.Join(s.path, e.Name()), Ranks: []string{}, Problem: "it is a link: remove by hand what it leads to"})
		case runIDPattern.MatchString(e.Name()) && e.IsDir():
			if r := s.look(e.Name()); r != nil {
				runs = append(runs, r)
			}
		}
	}
	return runs, trash, nil
}

// look returns nil for a directory without anything of an esperd.
func (s *stateDir) look(run string) *stateRun {
	r := &stateRun{Run: run, Path: filepath.Join(s.path, run), Ranks: []string{}}
	entries, err := fs.ReadDir(s.root.FS(), run)
	if err != nil {
		r.Problem = err.Error()
		return r
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case rankPattern.MatchString(name) && e.Type()&fs.ModeSymlink != 0:
			r.problem("%s is a link: remove by hand what it leads to", name)
		case !e.IsDir() || !s.isDataDir(run+"/"+name):
			r.Other = append(r.Other, name)
		case rankPattern.MatchString(name):
			r.Ranks = append(r.Ranks, name)
		default:
			r.Aside = append(r.Aside, name)
		}
	}
	if len(r.dataDirs()) == 0 && r.Problem == "" {
		return nil
	}
	for _, dir := range r.dataDirs() {
		s.measure(r, run+"/"+dir)
	}
	for _, dir := range r.dataDirs() {
		release, held, err := s.hold(run + "/" + dir)
		if release(); err != nil {
			r.problem("%v", err)
		}
		if held != "" && r.InUse == "" {
			r.InUse = held
		}
	}
	for _, dir := range r.Ranks {
		if r.InUse == "" {
			s.glance(r, dir)
		}
	}
	return r
}

func (r *stateRun) dataDirs() []string { return slices.Concat(r.Ranks, r.Aside) }

func (r *stateRun) problem(format string, args ...any) {
	if r.Problem == "" {
		r.Problem = fmt.Sprintf(format, args...)
	}
}

// isDataDir also takes a directory of data directories for one, as evidence may
// be kept.
func (s *stateDir) isDataDir(dir string) bool {
	has := func(dir string) bool {
		return slices.ContainsFunc(marks, func(mark string) bool {
			info, err := s.root.Lstat(dir + "/" + mark)
			return err == nil && (info.Mode().IsRegular() || info.IsDir())
		})
	}
	if has(dir) {
		return true
	}
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil || len(entries) == 0 {
		return false
	}
	return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() || !has(dir+"/"+e.Name()) })
}

// measure adds up what a data directory takes on disk, and when something in it
// was written last. It follows no link.
func (s *stateDir) measure(r *stateRun, dir string) {
	err := fs.WalkDir(s.root.FS(), dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			r.problem("%v", err)
			return fs.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return nil // gone meanwhile
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			r.Bytes += st.Blocks * 512
		}
		if (info.Mode().IsRegular() || path == dir) && info.ModTime().After(r.LastUse) {
			r.LastUse = info.ModTime().UTC()
		}
		return nil
	})
	if err != nil {
		r.problem("%v", err)
	}
}

// hold keeps every esperd from starting in a data directory, unless one runs
// there already.
func (s *stateDir) hold(dir string) (release func(), held string, err error) {
	name := dir + "/lock"
	info, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return replica.HoldDataDir(nil)
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is %s, expected a file: it cannot be told whether the directory is in use", filepath.Join(s.path, name), info.Mode())
	}
	var lock *os.File
	if err == nil {
		lock, err = s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return func() {}, "", err
	}
	return replica.HoldDataDir(lock)
}

// glance reads how far a history goes. What cannot be read is not worth an
// error: it is about to be removed, perhaps for that.
func (s *stateDir) glance(r *stateRun, dir string) {
	g, err := replica.GlanceAt(filepath.Join(s.path, r.Run, dir))
	if g.Entries < r.Entries || g.Entries == 0 {
		return
	}
	r.Entries = g.Entries
	if r.Epoch = nil; err == nil && g.Epoch >= 0 {
		r.Epoch = &g.Epoch
	}
}

// remove removes a run's data directories, while no esperd can start in them,
// and the run's directory if nothing is left there.
func (s *stateDir) remove(r *stateRun) error {
	if r.Problem != "" {
		return errors.New(r.Problem)
	}
	for _, dir := range r.dataDirs() {
		release, held, err := s.hold(r.Run + "/" + dir)
		defer release()
		if held != "" {
			r.InUse = held
			err = fmt.Errorf("it is in use by %s", held)
		}
		if err != nil {
			return err
		}
	}
	for i, dir := range r.dataDirs() {
		// First out of the way: an esperd that starts now makes a new directory.
		trash := fmt.Sprintf("%s%d-%d-%s", trashPrefix, os.Getpid(), i, r.Run)
		if err := s.root.Rename(r.Run+"/"+dir, trash); err != nil {
			return err
		}
		if err := s.root.RemoveAll(trash); err != nil {
			return err
		}
	}
	if len(r.Other) > 0 {
		return nil
	}
	if err := s.root.Remove(r.Run); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
