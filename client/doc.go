// Package client speaks to esperd's doors from Go.
//
// A Client is a trainer of one model: it numbers its calls, makes them one
// after the other over one connection to the trainer's door, and keeps making a
// call under the same number when the connection or esperd itself was lost, so
// that a call happens once. It is what the Python client does, for tests,
// benchmarks and the demonstration.
//
// An Admin reads what a node knows, and makes an operator's requests, over the
// same socket or the admin door.
package client
