package element

import (
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

//go:embed vectors.json
var vectorsJSON []byte

// A Vector is a known answer. Every implementation of the element functions is
// held against the same ones: Go, C, the PTX, a real GPU.
type Vector struct {
	Name string `json:"name"`

	// Fill is nil for a vector of the fingerprint alone, whose byte i is
	// (i*i*7 + i*13) mod 251.
	Fill *VectorFill `json:"fill,omitempty"`

	Bytes uint64 `json:"bytes"`
	First string `json:"first"` // up to 32 bytes of the contents, hexadecimal
	Lo    string `json:"lo"`    // their sum as a tensor, 16 hexadecimal digits each
	Hi    string `json:"hi"`
}

// VectorFill is how a vector's contents are made.
type VectorFill struct {
	DType     string    `json:"dtype"`
	Parameter Parameter `json:"parameter"`
	Bound     float64   `json:"bound"`
}

// Vectors returns the known answers.
func Vectors() []Vector {
	var v []Vector
	if err := json.Unmarshal(vectorsJSON, &v); err != nil {
		panic(err) // the file is part of the build
	}
	return v
}

// Args returns the arguments of the fill.
func (f *VectorFill) Args() (d DType, s Source, scale float32, err error) {
	if d, err = ParseDType(f.DType); err != nil {
		return
	}
	scale, err = Scale(f.Bound, d)
	return d, f.Parameter.Source(), scale, err
}

// Contents returns the vector's bytes as this package makes them.
func (v *Vector) Contents() ([]byte, error) {
	b := make([]byte, v.Bytes)
	if v.Fill == nil {
		for i := range b {
			b[i] = byte((i*i*7 + i*13) % 251)
		}
		return b, nil
	}
	d, s, scale, err := v.Fill.Args()
	if err != nil {
		return nil, err
	}
	FillUniform(b, d, s, 0, scale)
	return b, nil
}

// Check compares contents and sum, made by whatever implementation, with the
// vector.
func (v *Vector) Check(contents []byte, sum Sum) error {
	first := hex.EncodeToString(contents[:min(len(contents), 32)])
	lo, hi := fmt.Sprintf("%016x", sum.Lo), fmt.Sprintf("%016x", sum.Hi)
	if first != v.First || lo != v.Lo || hi != v.Hi {
		return fmt.Errorf("vector %s: expected %s with the sum %s %s, got %s with %s %s", v.Name, v.First, v.Lo, v.Hi, first, lo, hi)
	}
	return nil
}
