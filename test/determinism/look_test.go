package determinism

import (
	"go/ast"
	"go/token"
	"go/types"

	"golang.org/x/tools/go/ssa"
)

// look reports the instruction if it is an offence by itself.
func (w *walk) look(f *ssa.Function, instr ssa.Instruction) {
	switch instr := instr.(type) {
	case *ssa.BinOp:
		if arithmetic(instr.Op) && isFloat(instr.X.Type()) {
			w.report(f, instr.Pos(), "floating-point %s", instr.Op)
		}
	case *ssa.UnOp:
		switch {
		case instr.Op == token.SUB && isFloat(instr.X.Type()):
			w.report(f, instr.Pos(), "floating-point negation")
		case instr.Op == token.ARROW:
			w.report(f, instr.Pos(), "a channel receive")
		}
	case *ssa.Convert:
		w.lookConvert(f, instr.Pos(), instr.X.Type(), instr.Type())
	case *ssa.MultiConvert:
		w.lookConvert(f, instr.Pos(), instr.X.Type(), instr.Type())
	case *ssa.Range:
		if _, ok := instr.X.Type().Underlying().(*types.Map); ok {
			w.report(f, instr.Pos(), "a range over a map")
		}
	case *ssa.Go:
		w.report(f, instr.Pos(), "a goroutine")
	case *ssa.Select:
		w.report(f, instr.Pos(), "a select")
	case *ssa.Send:
		w.report(f, instr.Pos(), "a channel send")
	case *ssa.MakeChan:
		w.report(f, instr.Pos(), "a channel")
	case *ssa.Store:
		if g := globalAt(instr.Addr); g != nil {
			w.report(f, instr.Pos(), "a write to the package variable %s", g)
		}
	case *ssa.MapUpdate:
		if g := globalAt(instr.Map); g != nil {
			w.report(f, instr.Pos(), "a write to the package variable %s", g)
		}
	}
	w.lookGlobals(f, instr)
	if call, ok := instr.(ssa.CallInstruction); ok {
		w.lookBuiltin(f, call)
	}
}

// globalAt returns the package variable that an address lies in, nil if none.
func globalAt(v ssa.Value) *ssa.Global {
	for {
		switch x := v.(type) {
		case *ssa.Global:
			return x
		case *ssa.FieldAddr:
			v = x.X
		case *ssa.IndexAddr:
			v = x.X
		case *ssa.UnOp: // a load: what a variable points to
			v = x.X
		default:
			return nil
		}
	}
}

// lookConstants reports what differs between builds before there is any
// instruction: runtime.GOARCH, strconv.IntSize, unsafe.Sizeof.
func (w *walk) lookConstants(f *ssa.Function) {
	info, syntax := w.p.own[packageOf(f)], f.Syntax()
	if info == nil || syntax == nil {
		return
	}
	ast.Inspect(syntax, func(n ast.Node) bool {
		if lit, ok := n.(*ast.FuncLit); ok && ast.Node(lit) != syntax {
			return false // a function of its own
		}
		id, ok := n.(*ast.Ident)
		if !ok {
			return true
		}
		switch obj := info.Uses[id].(type) {
		case *types.Const:
			if obj.Pkg() != nil && (obj.Pkg().Path() == "runtime" || platformConstants[obj.Pkg().Path()+"."+obj.Name()]) {
				w.report(f, id.Pos(), "the platform's %s.%s", obj.Pkg().Name(), obj.Name())
			}
		case *types.Builtin:
			if obj.Pkg() == types.Unsafe {
				w.report(f, id.Pos(), "unsafe.%s", obj.Name())
			}
		}
		return true
	})
}

var platformConstants = map[string]bool{"strconv.IntSize": true, "math/bits.UintSize": true, "math.MaxInt": true, "math.MinInt": true, "math.MaxUint": true}

// lookGlobals reports package variables of other modules: os.Args and the like.
func (w *walk) lookGlobals(f *ssa.Function, instr ssa.Instruction) {
	for _, op := range instr.Operands(nil) {
		if g, ok := (*op).(*ssa.Global); ok && w.p.own[g.Pkg.Pkg] == nil && !w.allowed[g.String()] {
			w.report(f, instr.Pos(), "the package variable %s", g)
		}
	}
}

// lookBuiltin reports what is no function of a package.
func (w *walk) lookBuiltin(f *ssa.Function, call ssa.CallInstruction) {
	b, ok := call.Common().Value.(*ssa.Builtin)
	if !ok {
		return
	}
	switch name := b.Name(); name {
	case "close":
		w.report(f, call.Pos(), "a channel close")
	case "min", "max": // which NaN comes out is the processor's choice
		if isFloat(call.Common().Args[0].Type()) {
			w.report(f, call.Pos(), "floating-point %s", name)
		}
	case "complex", "real", "imag":
		w.report(f, call.Pos(), "complex numbers")
	}
}

func (w *walk) lookConvert(f *ssa.Function, pos token.Pos, from, to types.Type) {
	a, b := floatSize(from), floatSize(to)
	switch {
	case isUnsafePointer(from) || isUnsafePointer(to):
		w.report(f, pos, "unsafe.Pointer")
	case a != b:
		w.report(f, pos, "the conversion from %s to %s", from.Underlying(), to.Underlying())
	}
}

func arithmetic(op token.Token) bool {
	return op == token.ADD || op == token.SUB || op == token.MUL || op == token.QUO
}

func basicInfo(t types.Type) types.BasicInfo {
	if b, ok := t.Underlying().(*types.Basic); ok {
		return b.Info()
	}
	return 0
}

func isFloat(t types.Type) bool { return basicInfo(t)&(types.IsFloat|types.IsComplex) != 0 }

// floatSize is 0 for what is no floating-point type.
func floatSize(t types.Type) int64 {
	if !isFloat(t) {
		return 0
	}
	return types.SizesFor("gc", "amd64").Sizeof(t)
}

func isUnsafePointer(t types.Type) bool {
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Kind() == types.UnsafePointer
}
