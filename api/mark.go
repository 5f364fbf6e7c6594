package api

import (
	"encoding/base64"
	"encoding/json"

	"github.com/danielgtaylor/huma/v2"
)

// MarkBytes is a mark in JSON: a string in base64. What is no base64 is taken as
// it is, as bytes that are no mark: a rank that brings them has to be compared
// with the others as one that brings any other damaged mark.
type MarkBytes []byte

// MarshalJSON writes base64; nil is an empty string.
func (m MarkBytes) MarshalJSON() ([]byte, error) {
	return json.Marshal(base64.StdEncoding.EncodeToString(m))
}

// UnmarshalJSON reads a string, or null.
func (m *MarkBytes) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	*m = MarkBytes(text)
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		*m = b
	}
	return nil
}

// Schema describes it.
func (MarkBytes) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Nullable: true, Extensions: map[string]any{"contentMediaType": "application/octet-stream"}}
}
