package events

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"go.etcd.io/bbolt"

	"github.com/esperd/esperd/internal/regular"
)

// The check of a file's structure before bbolt may work on it. bbolt trusts its
// pages: on a damaged tree it panics, runs in circles until the stack is full,
// or frees pages that are in use. This check follows every pointer between
// pages with plain reads, so that none of that can happen: each page is in the
// file and used once, and no free page is in use.
//
// In files up to deepCheckBytes it also looks into every leaf. In larger ones
// it leaves out the leaves of large buckets, all but the last, and takes
// milliseconds at a million entries; their content is checked, by CRC and
// chain, as it is read.
const deepCheckBytes = 64 << 20

// bbolt's format: a page's header is its id 8, flags 2, count 2, overflow 4
// bytes, in the machine's byte order.
const (
	pageHeader   = 16
	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageMeta     = 0x04
	pageFreelist = 0x10
	elementBytes = 16
	bucketHeader = 16
	bucketEntry  = 1 // flag of a leaf's element
	metaBytes    = 64
	boltMagic    = 0xED0CDAED
	maxDepth     = 16 // of a tree; 64-bit keys in 4 KiB pages need 5
)

var native = binary.NativeEndian

// checkFile opens the file without the right to write, which takes the lock and
// fails if another process has it for writing, and checks its structure.
func (h *History) checkFile() error {
	if info, err := os.Stat(h.path); err == nil && info.Size() == 0 {
		return h.corrupt(0, "it is empty, and no history ever is")
	}
	o := boltOptions()
	o.ReadOnly = true
	db, err := bbolt.Open(h.path, 0o600, o)
	if err != nil {
		return h.openError(err)
	}
	defer db.Close()
	f, err := regular.Open(h.path)
	if err != nil {
		return fmt.Errorf("check history: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("check history: %w", err)
	}
	c := checker{f: &pager{f: f}, size: info.Size(), pageSize: int64(db.Info().PageSize), deep: info.Size() <= deepCheckBytes}
	torn, err := c.check()
	if err != nil {
		return h.corrupt(0, err.Error())
	}
	if torn {
		h.log.Warn("one of the history's two headers is not readable, as a crash leaves it: going on from the other")
	}
	return nil
}

type checker struct {
	f        *pager
	size     int64
	pageSize int64
	deep     bool
	whole    bool    // look at every page: leaves of records only for what kind they are, and no page may be lost
	leaves   pageSet // known to be leaves of one page
	high     uint64  // pages in use are below
	used     pageSet
}

// A pageSet is a bit a page.
type pageSet []uint64

func (s pageSet) has(id uint64) bool {
	return id/64 < uint64(len(s)) && s[id/64]&(1<<(id%64)) != 0
}

func (s *pageSet) add(id uint64) {
	for uint64(len(*s)) <= id/64 {
		*s = append(*s, 0)
	}
	(*s)[id/64] |= 1 << (id % 64)
}

// A page is a page's bytes with its overflow.
type page struct {
	id       uint64
	flags    uint16
	count    int
	overflow uint64
	b        []byte
}

// check reports whether one of the two headers is damaged, which is no error.
func (c *checker) check() (torn bool, err error) {
	root, freelist, torn, err := c.metas()
	if err != nil {
		return false, err
	}
	if c.high > uint64(c.size/c.pageSize) {
		return false, fmt.Errorf("it is cut off: %d bytes, where its header says %d", c.size, c.high*uint64(c.pageSize))
	}
	c.used = make(pageSet, c.high/64+1)
	if err := c.tree(root, 0, true, c.rootLeaf); err != nil {
		return false, err
	}
	if err := c.freelist(freelist); err != nil {
		return torn, err
	}
	return torn, c.lost()
}

// lost checks that every page is in use or free.
func (c *checker) lost() error {
	for id := uint64(2); c.whole && id < c.high; id++ {
		if !c.used.has(id) {
			return fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return nil
}

// metas reads the two header pages; the valid one of the later transaction
// counts.
func (c *checker) metas() (root, freelist uint64, torn bool, err error) {
	found, latest := 0, uint64(0)
	for i := range int64(2) {
		b := make([]byte, pageHeader+metaBytes)
		if _, err := c.f.ReadAt(b, i*c.pageSize); err != nil {
			return 0, 0, false, fmt.Errorf("header %d: %w", i, err)
		}
		if c.whole && (native.Uint64(b) != uint64(i) || native.Uint16(b[8:]) != pageMeta) {
			return 0, 0, false, fmt.Errorf("page %d is not the header that is expected", i)
		}
		m := b[pageHeader:]
		sum := fnv.New64a()
		sum.Write(m[:56])
		if native.Uint32(m) != boltMagic || native.Uint64(m[56:]) != sum.Sum64() || int64(native.Uint32(m[8:])) != c.pageSize {
			continue
		}
		found++
		if txid := native.Uint64(m[48:]); found == 1 || txid > latest {
			latest = txid
			root, freelist, c.high = native.Uint64(m[16:]), native.Uint64(m[32:]), native.Uint64(m[40:])
		}
	}
	if found == 0 {
		return 0, 0, false, errors.New("neither header is valid")
	}
	return root, freelist, found < 2, nil
}

// claim notes that n pages from id on are in use.
func (c *checker) claim(id, n uint64) error {
	if id < 2 || n > c.high || id > c.high-n {
		return fmt.Errorf("a pointer to page %d of %d", id, c.high)
	}
	for p := id; p < id+n; p++ {
		if c.used.has(p) {
			return fmt.Errorf("page %d is used twice", p)
		}
		c.used.add(p)
	}
	return nil
}

// read reads a page whose first one is claimed, and claims its overflow.
func (c *checker) read(id uint64) (page, error) {
	head := make([]byte, pageHeader)
	if _, err := c.f.ReadAt(head, int64(id)*c.pageSize); err != nil {
		return page{}, fmt.Errorf("page %d: %w", id, err)
	}
	p := page{id: id, flags: native.Uint16(head[8:]), count: int(native.Uint16(head[10:])), overflow: uint64(native.Uint32(head[12:]))}
	if got := native.Uint64(head); got != id {
		return page{}, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	if p.overflow > 0 {
		if err := c.claim(id+1, p.overflow); err != nil {
			return page{}, fmt.Errorf("page %d: %w", id, err)
		}
	}
	p.b = make([]byte, int64(1+p.overflow)*c.pageSize)
	if _, err := c.f.ReadAt(p.b, int64(id)*c.pageSize); err != nil {
		return page{}, fmt.Errorf("page %d: %w", id, err)
	}
	return p, nil
}

// isLeaf reads no more than what kind of page it is.
func (c *checker) isLeaf(id uint64) (bool, error) {
	var head [pageHeader]byte
	if _, err := c.f.ReadAt(head[:], int64(id)*c.pageSize); err != nil {
		return false, fmt.Errorf("page %d: %w", id, err)
	}
	return native.Uint16(head[8:]) == pageLeaf, nil
}

// outline checks a claimed leaf but for its content.
func (c *checker) outline(id uint64) error {
	if c.leaves.has(id) {
		return nil
	}
	var head [pageHeader]byte
	if _, err := c.f.ReadAt(head[:], int64(id)*c.pageSize); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	if native.Uint64(head[:]) != id || native.Uint16(head[8:]) != pageLeaf {
		return fmt.Errorf("page %d is not the leaf that is expected", id)
	}
	if overflow := uint64(native.Uint32(head[12:])); overflow > 0 {
		return c.claim(id+1, overflow)
	}
	return nil
}

// tree checks the pages from id down. all: look into every leaf, else into the
// last.
func (c *checker) tree(id uint64, depth int, all bool, leaf func(page) error) error {
	if err := c.claim(id, 1); err != nil {
		return err
	}
	return c.subtree(id, depth, all, leaf)
}

func (c *checker) subtree(id uint64, depth int, all bool, leaf func(page) error) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is %d levels deep", id, depth)
	}
	p, err := c.read(id)
	if err != nil {
		return err
	}
	switch p.flags {
	case pageLeaf:
		if err := leaf(p); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		return nil
	case pageBranch:
		return c.branch(p, depth, all, leaf)
	default:
		return fmt.Errorf("page %d is of kind %#x, where a tree's is expected", id, p.flags)
	}
}

func (c *checker) branch(p page, depth int, all bool, leaf func(page) error) error {
	if p.count == 0 {
		return fmt.Errorf("page %d points nowhere", p.id)
	}
	children := make([]uint64, p.count)
	var last []byte
	for i := range children {
		e, err := p.element(i)
		if err != nil {
			return fmt.Errorf("page %d: %w", p.id, err)
		}
		pos, size := native.Uint32(e), native.Uint32(e[4:])
		if uint64(pos)+uint64(size) > uint64(len(e)) {
			return fmt.Errorf("page %d: key %d is outside", p.id, i)
		}
		key := e[pos : pos+size]
		if i > 0 && bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("page %d: key %d is out of order", p.id, i)
		}
		last, children[i] = key, native.Uint64(e[8:])
		if err := c.claim(children[i], 1); err != nil {
			return fmt.Errorf("page %d: %w", p.id, err)
		}
	}
	if !all {
		// All leaves are on one level.
		onLeaves, err := c.isLeaf(children[0])
		if err != nil {
			return err
		}
		if onLeaves {
			rest := len(children) - 1
			for i := 0; c.whole && i < rest; i++ {
				if err := c.outline(children[i]); err != nil {
					return err
				}
			}
			children = children[rest:]
		}
	}
	for _, id := range children {
		if err := c.subtree(id, depth+1, all, leaf); err != nil {
			return err
		}
	}
	return nil
}

// element returns the page from its i-th element on: positions count from there.
func (p page) element(i int) ([]byte, error) {
	at := pageHeader + i*elementBytes
	if at+elementBytes > len(p.b) {
		return nil, fmt.Errorf("%d elements do not fit", p.count)
	}
	return p.b[at:], nil
}

// dataLeaf is a leaf of a bucket: it holds no buckets.
func dataLeaf(p page) error {
	return p.each(func(flags uint32, _, _ []byte) error {
		if flags != 0 {
			return errors.New("a bucket where there is none")
		}
		return nil
	})
}

// rootLeaf is a leaf of the bucket of buckets. A small bucket is inside it.
func (c *checker) rootLeaf(p page) error {
	return p.each(func(flags uint32, _, value []byte) error {
		if flags != bucketEntry || len(value) < bucketHeader {
			return errors.New("something else than a bucket")
		}
		if root := native.Uint64(value); root != 0 {
			return c.tree(root, 1, c.deep, dataLeaf)
		}
		inline := value[bucketHeader:]
		if len(inline) < pageHeader || native.Uint16(inline[8:]) != pageLeaf {
			return errors.New("an inline bucket that is none")
		}
		return dataLeaf(page{count: int(native.Uint16(inline[10:])), b: inline})
	})
}

// freelist checks that no free page is in use, or bbolt would overwrite it.
func (c *checker) freelist(id uint64) error {
	if err := c.claim(id, 1); err != nil { // also if there is none, which this package never writes
		return fmt.Errorf("freelist: %w", err)
	}
	p, err := c.read(id)
	if err != nil {
		return fmt.Errorf("freelist: %w", err)
	}
	if p.flags != pageFreelist {
		return fmt.Errorf("page %d is of kind %#x instead of the freelist", id, p.flags)
	}
	ids := p.b[pageHeader:]
	count := uint64(p.count)
	if count == 0xFFFF { // the number did not fit: it is in front
		count = native.Uint64(ids)
		ids = ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return fmt.Errorf("a freelist of %d pages", count)
	}
	for i := range count {
		if err := c.claim(native.Uint64(ids[i*8:]), 1); err != nil {
			return fmt.Errorf("freelist: %w", err)
		}
	}
	return nil
}
