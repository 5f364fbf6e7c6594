package events

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// The lists of gates, operations, codes and actions are complete: what
// vocabulary.go defines can be decoded.
func TestVocabularyIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "vocabulary.go", nil, 0)
	require.NoError(t, err)
	lists, listed := map[string]map[string]string{}, 0
	for typ, names := range vocabulary {
		lists[typ.Name()] = names
		listed += len(names)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) == 0 {
			return true
		}
		typ, ok := spec.Type.(*ast.Ident)
		if !ok || lists[typ.Name] == nil {
			return true
		}
		for _, v := range spec.Values {
			value, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			require.NoError(t, err)
			require.Contains(t, lists[typ.Name], value, "%s is missing in codec.go", spec.Names[0])
			found++
		}
		return true
	})
	require.Equal(t, listed, found)
}
