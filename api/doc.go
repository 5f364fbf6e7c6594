// Package api is what crosses esperd's two doors as JSON: the requests and
// answers of the trainer's door (a unix socket) and of the admin door (HTTP on
// loopback). Server, Go client and command line share these types.
package api
