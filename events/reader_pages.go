package events

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
)

const boltVersion = 2

// A snap is the file as one transaction left it.
type snap struct {
	r *Reader
	meta
	buckets map[string]bucketRoot
}

// bucketRoot is where a bucket's tree begins: on a page, or in its parent's leaf.
type bucketRoot struct {
	page   uint64
	inline []byte
}

// open reads the bucket of buckets.
func (s *snap) open() error {
	s.buckets = make(map[string]bucketRoot, len(buckets))
	p, err := s.page(s.root, 0)
	if err != nil {
		return err
	}
	if p.flags != pageLeaf {
		return fmt.Errorf("page %d is of kind %#x, where the list of buckets is expected", p.id, p.flags)
	}
	return p.each(func(flags uint32, key, value []byte) error {
		if flags != bucketEntry || len(value) < bucketHeader {
			return errors.New("something else than a bucket")
		}
		root := bucketRoot{page: native.Uint64(value)}
		if root.page == 0 {
			root.inline = bytes.Clone(value[bucketHeader:])
		}
		s.buckets[string(key)] = root
		return nil
	})
}

// page reads a page with its overflow into the buffer of its level.
func (s *snap) page(id uint64, level int) (page, error) {
	if level > maxDepth {
		return page{}, fmt.Errorf("page %d is %d levels deep", id, level)
	}
	if id < 2 || id >= s.high {
		return page{}, fmt.Errorf("a pointer to page %d of %d", id, s.high)
	}
	size := s.r.pageSize
	buf := s.r.levels[level]
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := s.r.pages.ReadAt(buf, int64(id)*size); err != nil {
		return page{}, fmt.Errorf("page %d: %w", id, err)
	}
	p := page{id: id, flags: native.Uint16(buf[8:]), count: int(native.Uint16(buf[10:])), overflow: uint64(native.Uint32(buf[12:]))}
	if got := native.Uint64(buf); got != id {
		return page{}, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	if p.overflow > 0 {
		if p.overflow >= s.high-id || int64(p.overflow)*size > 2*MaxEntryBytes {
			return page{}, fmt.Errorf("page %d goes on for %d pages", id, p.overflow)
		}
		whole := make([]byte, int64(1+p.overflow)*size)
		if _, err := s.r.pages.ReadAt(whole, int64(id)*size); err != nil {
			return page{}, fmt.Errorf("page %d: %w", id, err)
		}
		buf = whole
	}
	s.r.levels[level] = buf[:min(int64(len(buf)), size)]
	p.b = buf
	if p.flags == pageLeaf && p.overflow == 0 {
		s.r.leaves.add(id)
	}
	return p, nil
}

// each calls fn for the elements of a leaf, which have to be inside it, with
// ascending keys.
func (p page) each(fn func(flags uint32, key, value []byte) error) error {
	var last []byte
	for i := range p.count {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		pos, ksize, vsize := uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:])), uint64(native.Uint32(e[12:]))
		if pos+ksize+vsize > uint64(len(e)) {
			return fmt.Errorf("element %d is outside", i)
		}
		key := e[pos : pos+ksize]
		if ksize == 0 || i > 0 && bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("key %d is out of order", i)
		}
		last = key
		if err := fn(native.Uint32(e), key, e[pos+ksize:pos+ksize+vsize]); err != nil {
			return err
		}
	}
	return nil
}

// children returns the keys and pages of a branch.
func (p page) children() (keys [][]byte, ids []uint64, err error) {
	if p.count == 0 {
		return nil, nil, errors.New("it points nowhere")
	}
	keys, ids = make([][]byte, p.count), make([]uint64, p.count)
	for i := range ids {
		e, err := p.element(i)
		if err != nil {
			return nil, nil, err
		}
		pos, size := uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))
		if pos+size > uint64(len(e)) {
			return nil, nil, fmt.Errorf("key %d is outside", i)
		}
		keys[i], ids[i] = e[pos:pos+size], native.Uint64(e[8:])
		if i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 {
			return nil, nil, fmt.Errorf("key %d is out of order", i)
		}
	}
	return keys, ids, nil
}

// errEnough ends a walk that fn has ended.
var errEnough = errors.New("enough")

// A walk visits the elements of a bucket from a key on, in order. key and value
// are good until fn returns.
type walk struct {
	s    *snap
	from []byte
	last []byte // the key before
	fn   func(key, value []byte) (more bool, err error)
}

func (s *snap) walk(bucket, from []byte, fn func(key, value []byte) (bool, error)) error {
	root := s.buckets[string(bucket)]
	w := &walk{s: s, from: from, fn: fn}
	var err error
	if root.page == 0 {
		var p page
		if p, err = inlinePage(root.inline); err == nil {
			err = w.leaf(p, nil, nil)
		}
	} else {
		err = w.tree(root.page, 1, nil, nil)
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func inlinePage(b []byte) (page, error) {
	if len(b) < pageHeader || native.Uint16(b[8:]) != pageLeaf {
		return page{}, errors.New("an inline bucket that is none")
	}
	return page{count: int(native.Uint16(b[10:])), b: b}, nil
}

// tree visits a page whose keys are at least low and below high; nil: any.
func (w *walk) tree(id uint64, level int, low, high []byte) error {
	p, err := w.s.page(id, level)
	if err != nil {
		return err
	}
	switch p.flags {
	case pageLeaf:
		if p.count == 0 && level > 1 {
			return fmt.Errorf("page %d is empty", id)
		}
		if err := w.leaf(p, low, high); err != nil && !errors.Is(err, errEnough) {
			return fmt.Errorf("page %d: %w", id, err)
		} else if err != nil {
			return err
		}
		return nil
	case pageBranch:
	default:
		return fmt.Errorf("page %d is of kind %#x, where a tree's is expected", id, p.flags)
	}
	keys, ids, err := p.children()
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	first := sort.Search(len(keys), func(i int) bool { return bytes.Compare(keys[i], w.from) > 0 })
	for i := max(first-1, 0); i < len(ids); i++ {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		if err := w.tree(ids[i], level+1, keys[i], next); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) leaf(p page, low, high []byte) error {
	return p.each(func(flags uint32, key, value []byte) error {
		switch {
		case flags != 0:
			return errors.New("a bucket where there is none")
		case low != nil && bytes.Compare(key, low) < 0, high != nil && bytes.Compare(key, high) >= 0:
			return fmt.Errorf("key %x is not where its tree has it", key)
		case bytes.Compare(key, w.from) < 0:
			return nil
		}
		more, err := w.fn(key, value)
		if err == nil && !more {
			err = errEnough
		}
		return err
	})
}

// lastOf returns the last element of a bucket, a nil key if it is empty.
func (s *snap) lastOf(bucket []byte) (key, value []byte, err error) {
	root := s.buckets[string(bucket)]
	p, err := inlinePage(root.inline)
	for id, level := root.page, 1; root.page != 0; level++ {
		if p, err = s.page(id, level); err != nil || p.flags == pageLeaf {
			break
		}
		if p.flags != pageBranch {
			return nil, nil, fmt.Errorf("page %d is of kind %#x, where a tree's is expected", id, p.flags)
		}
		_, ids, err := p.children()
		if err != nil {
			return nil, nil, fmt.Errorf("page %d: %w", id, err)
		}
		id = ids[len(ids)-1]
	}
	if err != nil {
		return nil, nil, err
	}
	err = p.each(func(_ uint32, k, v []byte) error {
		key, value = k, v
		return nil
	})
	return key, value, err
}
