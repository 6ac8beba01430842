// Package compute keeps virtual machines: servers and what they are made from, where they
// run, and what their owners may have of them. How a server is spelled on the wire is a
// dialect's business, and how it is made real a driver's.
package compute
