package ptx

import (
	"fmt"
	"strconv"
	"strings"
)

// A Module is what a PTX file has.
type Module struct {
	Version, Target string
	Kernels         map[string]*Kernel
}

// A Kernel is one entry point.
type Kernel struct {
	Name       string
	params     map[string]uint64 // offsets
	paramBytes uint64
	shared     map[string]uint64
	sharedSize uint64
	registers  map[string]int
	labels     map[string]int
	code       []instruction
}

// An instruction is one line, and what it does.
type instruction struct {
	text     string
	guard    int // register of the predicate; -1: none
	negated  bool
	opcode   string   // before the first dot
	types    []string // what follows it
	operands []operand
	do       func(t *thread) error
}

// An operand is a register, a number, an address, or several of them in braces.
type operand struct {
	kind  byte // 'r' register, 'n' number, 'a' address, 'v' vector, 'l' label
	index int
	value uint64
	list  []operand
	name  string
}

// lines strips comments and blanks.
func lines(src string) (out []string) {
	for _, l := range strings.Split(src, "\n") {
		l, _, _ = strings.Cut(l, "//")
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}

// Parse reads a module.
func Parse(src string) (*Module, error) {
	m := &Module{Kernels: map[string]*Kernel{}}
	list := lines(src)
	for i := 0; i < len(list); i++ {
		fields := strings.Fields(list[i])
		switch {
		case fields[0] == ".version":
			m.Version = fields[1]
		case fields[0] == ".target":
			m.Target = fields[1]
		case fields[0] == ".address_size":
		case fields[0] == ".visible" && fields[1] == ".entry":
			k, next, err := parseKernel(list, i)
			if err != nil {
				return nil, err
			}
			m.Kernels[k.Name] = k
			i = next
		default:
			return nil, fmt.Errorf("unknown line %q", list[i])
		}
	}
	return m, nil
}

func parseKernel(list []string, i int) (*Kernel, int, error) {
	k := &Kernel{Name: strings.TrimSuffix(strings.Fields(list[i])[2], "("), params: map[string]uint64{}, shared: map[string]uint64{},
		registers: map[string]int{}, labels: map[string]int{}}
	for i++; list[i] != ")"; i++ {
		name, align, size, err := declaration(strings.TrimSuffix(list[i], ","))
		if err != nil {
			return nil, 0, err
		}
		k.paramBytes = (k.paramBytes + align - 1) / align * align
		k.params[name] = k.paramBytes
		k.paramBytes += size
	}
	if i++; list[i] != "{" {
		return nil, 0, fmt.Errorf("%s: expected {, got %q", k.Name, list[i])
	}
	for i++; i < len(list) && list[i] != "}"; i++ {
		if err := k.line(list[i]); err != nil {
			return nil, 0, fmt.Errorf("%s: %q: %w", k.Name, list[i], err)
		}
	}
	for j := range k.code {
		if err := k.compile(&k.code[j]); err != nil {
			return nil, 0, fmt.Errorf("%s: %q: %w", k.Name, k.code[j].text, err)
		}
	}
	return k, i, nil
}

// declaration reads ".param .align 8 .b8 name[16]" and ".param .u64 name".
func declaration(l string) (name string, align, size uint64, err error) {
	f := strings.Fields(strings.TrimSuffix(l, ";"))
	name = f[len(f)-1]
	typ := f[len(f)-2]
	if size, err = typeBytes(typ[1:]); err != nil {
		return
	}
	align = size
	if f[1] == ".align" {
		align, err = strconv.ParseUint(f[2], 10, 32)
	}
	if name, rest, ok := strings.Cut(name, "["); ok && err == nil {
		var n uint64
		n, err = strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 32)
		return name, align, size * n, err
	}
	return
}

func typeBytes(t string) (uint64, error) {
	if t == "pred" {
		return 1, nil
	}
	bits, err := strconv.ParseUint(t[1:], 10, 32)
	if err != nil || bits%8 != 0 {
		return 0, fmt.Errorf("unknown type %q", t)
	}
	return bits / 8, nil
}

func (k *Kernel) line(l string) error {
	switch {
	case strings.HasPrefix(l, ".reg"), strings.HasPrefix(l, ".pragma"):
		return nil
	case strings.HasPrefix(l, ".shared"):
		name, align, size, err := declaration(l)
		k.sharedSize = (k.sharedSize + align - 1) / align * align
		k.shared[name] = k.sharedSize
		k.sharedSize += size
		return err
	case strings.HasSuffix(l, ":"):
		k.labels[strings.TrimSuffix(l, ":")] = len(k.code)
		return nil
	case l[0] == '{': // clang's way to take a half of a register
		for _, part := range strings.Split(strings.Trim(l, "{} "), ";") {
			if part = strings.TrimSpace(part); part != "" && !strings.HasPrefix(part, ".reg") {
				if err := k.instruction(part); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return k.instruction(strings.TrimSuffix(l, ";"))
}

func (k *Kernel) instruction(l string) error {
	in := instruction{text: l, guard: -1}
	if l[0] == '@' {
		guard, rest, _ := strings.Cut(l[1:], " ")
		guard, in.negated = strings.CutPrefix(guard, "!")
		in.guard = k.register(guard)
		l = strings.TrimSpace(rest)
	}
	word, rest := l, ""
	if i := strings.IndexAny(l, " \t"); i > 0 {
		word, rest = l[:i], strings.TrimSpace(l[i:])
	}
	parts := strings.Split(word, ".")
	in.opcode, in.types = parts[0], parts[1:]
	for _, s := range splitOperands(rest) {
		o, err := k.operand(s)
		if err != nil {
			return err
		}
		in.operands = append(in.operands, o)
	}
	k.code = append(k.code, in)
	return nil
}

// splitOperands cuts at commas outside of braces.
func splitOperands(s string) (out []string) {
	depth, start := 0, 0
	for i, c := range s {
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 0 {
				out, start = append(out, s[start:i]), i+1
			}
		}
	}
	if strings.TrimSpace(s[start:]) != "" {
		out = append(out, s[start:])
	}
	return out
}

func (k *Kernel) register(name string) int {
	r, ok := k.registers[name]
	if !ok {
		r = len(k.registers)
		k.registers[name] = r
	}
	return r
}

func (k *Kernel) operand(s string) (operand, error) {
	s = strings.TrimSpace(s)
	switch {
	case s == "":
		return operand{}, fmt.Errorf("an empty operand")
	case s[0] == '{':
		o := operand{kind: 'v'}
		for _, part := range strings.Split(strings.Trim(s, "{}"), ",") {
			p, err := k.operand(part)
			if err != nil {
				return o, err
			}
			o.list = append(o.list, p)
		}
		return o, nil
	case s[0] == '[':
		base, offset, _ := strings.Cut(strings.Trim(s, "[]"), "+")
		b, err := k.operand(base)
		if err != nil {
			return b, err
		}
		o := operand{kind: 'a', list: []operand{b}}
		if offset != "" {
			var n int64
			n, err = strconv.ParseInt(strings.TrimSpace(offset), 10, 64)
			o.value = uint64(n)
		}
		return o, err
	case s[0] == '%' || s == "tmp":
		return operand{kind: 'r', index: k.register(s), name: s}, nil
	case strings.HasPrefix(s, "0f"):
		v, err := strconv.ParseUint(s[2:], 16, 32)
		return operand{kind: 'n', value: v}, err
	case s[0] == '-' || s[0] >= '0' && s[0] <= '9':
		if v, err := strconv.ParseInt(s, 0, 64); err == nil {
			return operand{kind: 'n', value: uint64(v)}, nil
		}
		v, err := strconv.ParseUint(s, 0, 64)
		return operand{kind: 'n', value: v}, err
	}
	return operand{kind: 'l', name: s}, nil
}
