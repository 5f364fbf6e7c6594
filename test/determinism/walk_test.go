package determinism

import (
	"cmp"
	"errors"
	"fmt"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
	"golang.org/x/tools/go/ssa"
	"golang.org/x/tools/go/ssa/ssautil"
)

// program is the packages of one module that some of its packages need, in SSA
// form. Functions of other modules have no body: they are leaves.
type program struct {
	dir     string
	ssa     *ssa.Program
	own     map[*types.Package]*types.Info
	methods []*ssa.Function // of all types of the module
	values  []*ssa.Function // functions that are used as values somewhere in the module
}

// offence is something whose outcome the log does not determine.
type offence struct {
	what string
	pos  token.Position
	path []string // from the root to the function
}

func (o offence) String() string {
	return fmt.Sprintf("%s:%d: %s\n\treached by %s", o.pos.Filename, o.pos.Line, o.what, strings.Join(o.path, " -> "))
}

// load builds the module at dir, as far as the given packages need it.
func load(dir string, patterns ...string) (*program, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	own, err := ownPackages(dir, patterns)
	if err != nil {
		return nil, err
	}
	loaded, err := packages.Load(&packages.Config{Dir: dir, Mode: packages.LoadSyntax}, own...)
	if err != nil {
		return nil, err
	}
	for _, p := range loaded {
		if len(p.Errors) > 0 {
			return nil, p.Errors[0]
		}
	}
	prog, built := ssautil.Packages(loaded, ssa.InstantiateGenerics)
	prog.Build()
	p := &program{dir: dir, ssa: prog, own: map[*types.Package]*types.Info{}}
	for i, pkg := range built {
		p.own[pkg.Pkg] = loaded[i].TypesInfo
	}
	p.collect(built)
	return p, nil
}

// ownPackages lists what the patterns need of their own module.
func ownPackages(dir string, patterns []string) ([]string, error) {
	roots, err := packages.Load(&packages.Config{Dir: dir, Mode: packages.NeedName | packages.NeedImports | packages.NeedDeps | packages.NeedModule}, patterns...)
	if err != nil {
		return nil, err
	}
	var own []string
	packages.Visit(roots, nil, func(p *packages.Package) {
		if p.Module != nil && p.Module.Main {
			own = append(own, p.PkgPath)
		}
	})
	if len(own) == 0 {
		return nil, errors.New("no package of the module at " + dir)
	}
	return own, nil
}

// collect finds the methods of the module and the functions that are used as
// values anywhere in it, package initialisers included.
func (p *program) collect(built []*ssa.Package) {
	for _, pkg := range built {
		for _, name := range slices.Sorted(maps.Keys(pkg.Members)) {
			if t, ok := pkg.Members[name].(*ssa.Type); ok {
				p.methods = append(p.methods, p.methodsOf(t.Type())...)
			}
		}
	}
	all := ssautil.AllFunctions(p.ssa)
	for f := range all {
		if len(f.Blocks) == 0 || f.TypeParams().Len() > len(f.TypeArgs()) {
			continue
		}
		for _, b := range f.Blocks {
			for _, instr := range b.Instrs {
				for _, v := range valuesOf(instr) {
					if len(v.Blocks) > 0 {
						p.values = append(p.values, v)
					}
				}
			}
		}
	}
	slices.SortFunc(p.values, func(a, b *ssa.Function) int { return cmp.Compare(a.String(), b.String()) })
	p.values = slices.Compact(p.values)
}

// methodsOf returns the methods of a type and of pointers to it, with bodies.
func (p *program) methodsOf(t types.Type) []*ssa.Function {
	if named, ok := t.(*types.Named); ok && named.TypeParams().Len() > named.TypeArgs().Len() {
		return nil // generic
	}
	if types.IsInterface(t) {
		return nil
	}
	var out []*ssa.Function
	set := p.ssa.MethodSets.MethodSet(types.NewPointer(t))
	for i := range set.Len() {
		if f := p.ssa.MethodValue(set.At(i)); f != nil && len(f.Blocks) > 0 {
			out = append(out, f)
		}
	}
	return out
}

// valuesOf returns the functions that an instruction uses other than to call
// them.
func valuesOf(instr ssa.Instruction) []*ssa.Function {
	var out []*ssa.Function
	called := ssa.Value(nil)
	if call, ok := instr.(ssa.CallInstruction); ok && !call.Common().IsInvoke() {
		called = call.Common().Value
	}
	for _, op := range instr.Operands(nil) {
		if f, ok := (*op).(*ssa.Function); ok && *op != called {
			out = append(out, f)
		}
	}
	return out
}

// walk visits every function of the module that root may reach: through static
// calls, through interfaces (every method of the module that implements one),
// through function values (every one of the module with the same signature),
// and what a function of another module may call back: function values and
// methods that it is given. It errs on the side of reaching too much.
type walk struct {
	p        *program
	allowed  map[string]bool // what may be used of other modules, by full name
	passed   map[string]bool // what is not walked, and whether it was met
	parents  map[*ssa.Function]*ssa.Function
	queue    []*ssa.Function
	given    map[types.Type]bool // converted to an interface on the way
	offences []offence
}

// offences returns what root reaches and must not, in the order of position.
// What a leaf in allowed does is fine; what a function in passed does is
// answered for elsewhere, but each of them has to be met.
func (p *program) offences(root *ssa.Function, allowed, passed []string) []offence {
	w := &walk{p: p, allowed: map[string]bool{}, passed: map[string]bool{}, parents: map[*ssa.Function]*ssa.Function{}, given: map[types.Type]bool{}}
	for _, name := range allowed {
		w.allowed[name] = true
	}
	for _, name := range passed {
		w.passed[name] = false
	}
	w.reach(root, nil)
	for len(w.queue) > 0 {
		f := w.queue[0]
		w.queue = w.queue[1:]
		w.lookConstants(f)
		for _, b := range f.Blocks {
			for _, instr := range b.Instrs {
				w.look(f, instr)
				w.follow(f, instr)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.passed)) {
		if !w.passed[name] {
			w.report(root, root.Pos(), "%s is an exception of this test that is not needed any more", name)
		}
	}
	slices.SortStableFunc(w.offences, func(a, b offence) int {
		return cmp.Or(cmp.Compare(a.pos.Filename, b.pos.Filename), cmp.Compare(a.pos.Line, b.pos.Line), cmp.Compare(a.what, b.what))
	})
	return w.offences
}

// function returns a function of the program by package path and name.
func (p *program) function(pkg, name string) (*ssa.Function, error) {
	for t := range p.own {
		if t.Path() == pkg {
			if f := p.ssa.Package(t).Func(name); f != nil {
				return f, nil
			}
		}
	}
	return nil, fmt.Errorf("there is no function %s.%s", pkg, name)
}

func (w *walk) reach(f, from *ssa.Function) {
	if _, seen := w.parents[f]; seen {
		return
	}
	if name := fullName(f); w.passes(name) {
		w.passed[name] = true
		return
	}
	w.parents[f] = from
	w.queue = append(w.queue, f)
}

func (w *walk) passes(name string) bool {
	_, ok := w.passed[name]
	return ok
}

// path returns how the walk came to f.
func (w *walk) path(f *ssa.Function) []string {
	var out []string
	for ; f != nil; f = w.parents[f] {
		out = append(out, shortName(f))
	}
	slices.Reverse(out)
	return out
}

func (w *walk) report(f *ssa.Function, pos token.Pos, format string, args ...any) {
	for g := f; pos == token.NoPos && g != nil; g = g.Parent() {
		pos = g.Pos()
	}
	at := w.p.ssa.Fset.Position(pos)
	if rel, err := filepath.Rel(w.p.dir, at.Filename); err == nil {
		at.Filename = rel
	}
	w.offences = append(w.offences, offence{what: fmt.Sprintf(format, args...) + " in " + shortName(f), pos: at, path: w.path(f)})
}

// follow goes on to whatever the instruction may call.
func (w *walk) follow(f *ssa.Function, instr ssa.Instruction) {
	for _, v := range valuesOf(instr) { // somebody may call it, here or in another module
		w.enter(f, instr, v)
	}
	if made, ok := instr.(*ssa.MakeInterface); ok {
		w.give(f, made.X.Type())
	}
	call, ok := instr.(ssa.CallInstruction)
	if !ok {
		return
	}
	common := call.Common()
	switch callee := common.Value.(type) {
	case *ssa.Builtin:
	case *ssa.Function:
		w.enter(f, instr, callee)
	default:
		if common.IsInvoke() {
			w.invoke(f, instr, common)
			return
		}
		w.dynamic(f, common.Signature())
	}
}

// enter follows a call or a function value into the module, and checks it
// against the allowed ones outside.
func (w *walk) enter(f *ssa.Function, instr ssa.Instruction, callee *ssa.Function) {
	if len(callee.Blocks) > 0 {
		w.reach(callee, f)
		return
	}
	name := fullName(callee)
	if pkg := packageOf(callee); pkg != nil && w.p.own[pkg] != nil {
		w.report(f, instr.Pos(), "%s, which has no Go body,", name)
		return
	}
	if !w.allowed[name] {
		w.report(f, instr.Pos(), "%s", describeLeaf(name))
	}
}

// invoke follows an interface call to all methods of the module that it may be.
func (w *walk) invoke(f *ssa.Function, instr ssa.Instruction, call *ssa.CallCommon) {
	iface := call.Value.Type().Underlying().(*types.Interface)
	for _, m := range w.p.methods {
		recv := m.Signature.Recv()
		if m.Name() != call.Method.Name() || recv == nil {
			continue
		}
		if types.Implements(recv.Type(), iface) || types.Implements(types.NewPointer(recv.Type()), iface) {
			w.reach(m, f)
		}
	}
	if pkg := call.Method.Pkg(); pkg != nil && w.p.own[pkg] != nil {
		return
	}
	if name := call.Method.FullName(); !w.allowed[name] {
		w.report(f, instr.Pos(), "%s", describeLeaf(name))
	}
}

// dynamic follows a call of a function value to all functions of the module
// that are used as values and fit.
func (w *walk) dynamic(f *ssa.Function, sig *types.Signature) {
	for _, v := range w.p.values {
		if types.Identical(withoutReceiver(v.Signature), withoutReceiver(sig)) {
			w.reach(v, f)
		}
	}
}

func withoutReceiver(s *types.Signature) *types.Signature {
	return types.NewSignatureType(nil, nil, nil, s.Params(), s.Results(), s.Variadic())
}

// give follows the exported methods of a type that becomes an interface, and
// of what is inside it: fmt and encoders call them. Nobody who might call
// UnmarshalText and its like is among the allowed ones.
func (w *walk) give(f *ssa.Function, t types.Type) {
	if w.given[t] {
		return
	}
	w.given[t] = true
	switch u := types.Unalias(t).(type) {
	case *types.Named:
		if pkg := u.Obj().Pkg(); pkg == nil || w.p.own[pkg] == nil {
			return // of another module
		}
		for _, m := range w.p.methodsOf(u) {
			if token.IsExported(m.Name()) && !strings.HasPrefix(m.Name(), "Unmarshal") {
				w.reach(m, f)
			}
		}
		w.give(f, u.Underlying())
	case *types.Pointer:
		w.give(f, u.Elem())
	case *types.Slice:
		w.give(f, u.Elem())
	case *types.Array:
		w.give(f, u.Elem())
	case *types.Map:
		w.give(f, u.Key())
		w.give(f, u.Elem())
	case *types.Struct:
		for i := range u.NumFields() {
			w.give(f, u.Field(i).Type())
		}
	}
}

// packageOf returns the package of a function, also of an instance of a generic
// one and of a wrapper.
func packageOf(f *ssa.Function) *types.Package {
	if o := f.Origin(); o != nil {
		f = o
	}
	for f.Parent() != nil && f.Pkg == nil {
		f = f.Parent()
	}
	switch {
	case f.Pkg != nil:
		return f.Pkg.Pkg
	case f.Object() != nil:
		return f.Object().Pkg()
	}
	return nil
}

// fullName is how the list of allowed functions names it.
func fullName(f *ssa.Function) string {
	if o := f.Origin(); o != nil {
		f = o
	}
	if obj, ok := f.Object().(*types.Func); ok {
		return obj.FullName()
	}
	return f.String()
}

// shortName leaves out the directories of packages.
func shortName(f *ssa.Function) string {
	name := f.RelString(nil)
	var out strings.Builder
	for _, part := range strings.SplitAfter(name, "(") { // receivers and type arguments
		out.WriteString(lastElement(part))
	}
	return out.String()
}

func lastElement(s string) string {
	star := ""
	if strings.HasPrefix(s, "*") {
		star, s = "*", s[1:]
	}
	if i := strings.LastIndex(s, "/"); i >= 0 {
		s = s[i+1:]
	}
	return star + s
}

// describeLeaf says why a call out of the module is no good.
func describeLeaf(name string) string {
	for _, known := range []struct{ prefix, why string }{
		{"time.", "the clock"}, {"(time.", "the clock"}, {"(*time.", "the clock"},
		{"math/rand", "randomness"}, {"(*math/rand", "randomness"}, {"crypto/rand", "randomness"},
		{"math.", "floating-point functions"},
		{"maps.", "the order of a map"},
		{"runtime", "the runtime"}, {"os.", "the environment"}, {"(*os.", "the environment"},
		{"reflect.", "reflection"}, {"(reflect.", "reflection"}, {"(*reflect.", "reflection"},
		{"sync", "shared memory"}, {"(*sync", "shared memory"},
	} {
		if strings.HasPrefix(name, known.prefix) {
			return known.why + ": " + name
		}
	}
	return "a call of " + name + ", which is not on the list of allowed functions,"
}
